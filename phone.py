"""Makes an app for phones of a trained model: python phone.py --help."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import run_command
from utils.logs import start_logging

if TYPE_CHECKING:
    from deployment.phone.build import App


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Writes a folder of static files: a web app that recognizes the car in front of the camera, offline, "
        "with the model inside. docs/phone.md explains how to publish it."
    )
    parser.add_argument("trained", metavar="RUN|CHECKPOINT", help="a run's folder or name, 'last', or a checkpoint")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="folder to write, instead of the run's phone/")
    parser.add_argument("--int8", action="store_true", help="8-bit weights and activations: a quarter of the size")
    parser.add_argument("-d", "--data", metavar="FOLDER", type=Path, help="data set, instead of the training's")
    parser.add_argument("--serve", action="store_true", help="serve the app to this machine and its network")
    parser.add_argument("--port", type=port, default=8000, help="of the server; 0 takes a free one (8000)")
    return parser.parse_args(argv)


def port(text: str) -> int:
    """Parses the number of a port."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 65535")
    return int(text)


def main(argv: Sequence[str] | None = None) -> "App":
    """Builds, prints and returns the app."""
    arguments = parse_arguments(argv)
    start_logging("WARNING")

    # Torch takes seconds to import: wrong arguments are reported before.
    from deployment.phone.build import MODEL, build_app
    from deployment.phone.model import write_model
    from deployment.trained import load_trained

    trained = load_trained(arguments.trained)
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary, MODEL)
        about = write_model(trained, model, int8=arguments.int8, data=arguments.data)
        app = build_app(model, about, arguments.output or trained.folder / "phone")
    print(
        f"{app.folder}: version {app.version}, {app.size / 1e6:.1f} MB at the first visit "
        f"({app.sizes['model.onnx'] / 1e6:.1f} MB model, {app.sizes['ort.bin'] / 1e6:.1f} MB runtime)"
    )
    if about["threshold"] is None:
        print('  without a calibration the app never says "not sure"')
    if arguments.serve:
        serve(app.folder, arguments.port)
    else:
        print("  next: --serve tries it here; docs/phone.md explains how to publish the folder")
    return app


def serve(folder: Path, port: int) -> None:
    """Serves `folder` until Ctrl-C."""
    from deployment.phone.serve import network_address, open_server, qr_code

    with open_server(folder, port) as server:
        port = server.server_port
        print(f"  on this machine: http://localhost:{port}/")
        if address := network_address():
            url = f"http://{address}:{port}/"
            print(f"  in the same network, for example from a phone: {url}\n{qr_code(url)}")
            print(
                "  Over plain http a phone takes photos with its own camera app; the camera within the page, live "
                "recognition,\n  installation and offline use need https: publish the folder (docs/phone.md)"
            )
        print("  Ctrl-C ends it", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(run_command(main))
