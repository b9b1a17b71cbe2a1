"""The app for phones in a browser: bytes of the first visit, milliseconds, memory, and agreement with predict.py.

    python -m measurements.phone RUN IMAGES [--int8] [--recognitions 500] [--photos 20] [--large 3]

Headless Chromium runs the app as a phone does, WebAssembly on one thread. IMAGES is a folder of photos; large ones are made of
them: enlarged, with the noise of a sensor, so that they have detail in every pixel.
"""

import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil
from PIL import Image

import phone
from datamodules.images import read_image
from deployment.export import evenly_spaced
from deployment.phone.serve import Handler
from deployment.prediction import find_images, predict
from deployment.trained import load_trained
from measurements.measuring import (
    at_least,
    best_device,
    build_parser,
    conditions,
    print_conditions,
    spread,
    write_report,
)
from measurements.phone.browser import browser, wait_for
from utils.cli import run_command
from utils.progress import progress_bar

LARGE = {"12 megapixels": (4032, 3024), "50 megapixels": (8660, 5774)}
NOISE = 8.0  # standard deviation, of 255
EVERY = 50  # recognitions between two readings of the memory
# Recognizes photos of the site over and over, as the page does with a chosen one.
RECOGNIZE = """
const [names, count, done] = arguments;
(async () => {
  const [{ recognize }, { decode, draw }] = await Promise.all([import("./model.js"), import("./pixels.js")]);
  const found = [];
  for (let i = 0; i < count; i++) {
    const picture = await decode(await (await fetch(names[i % names.length])).blob());
    const canvas = draw(picture);
    picture.close();
    const { probabilities, milliseconds } = await recognize(canvas);
    found.push([milliseconds, i < names.length ? [...probabilities] : null]);
  }
  done(found);
})().catch((error) => done(String(error)));
"""


class CountingServer(ThreadingHTTPServer):
    """Serves a folder on a free port.

    Attributes:
        sent: Bytes of all files sent.
    """

    def __init__(self, folder: Path) -> None:
        self.sent = 0
        server = self

        class Counter(Handler):
            def copyfile(self, source: BinaryIO, outputfile: Any) -> None:
                server.sent += Path(source.name).stat().st_size
                super().copyfile(source, outputfile)

        super().__init__(("127.0.0.1", 0), partial(Counter, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()


def recognize(driver: Any, names: Sequence[str], count: int) -> tuple[list[float], list[list[float]]]:
    """Returns the milliseconds of `count` recognitions, and the probabilities of each photo."""
    found = driver.execute_async_script(RECOGNIZE, list(names), count)
    assert isinstance(found, list), found
    return [row[0] for row in found], [row[1] for row in found if row[1]]


def renderer_megabytes(driver: Any) -> float:
    """Returns the memory of the page's process, which is the largest one of Chromium's renderers."""
    processes = psutil.Process(driver.service.process.pid).children(recursive=True)
    return max(each.memory_info().rss for each in processes if "--type=renderer" in each.cmdline()) / 1e6


def make_large(path: Path, size: tuple[int, int], output: Path) -> None:
    """Enlarges a photo and adds the noise of a sensor."""
    pixels = np.asarray(read_image(path).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    noise = np.random.default_rng(0).normal(0, NOISE, pixels.shape[:2]).astype(np.float32)[:, :, None]
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(output, quality=90)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = build_parser(__doc__, data=False, overrides=False)
    parser.add_argument("trained", metavar="RUN|CHECKPOINT")
    parser.add_argument("images", metavar="IMAGES", help="folder of photos")
    parser.add_argument("--int8", action="store_true", help="the app with 8-bit weights")
    parser.add_argument(
        "-d", "--data", metavar="FOLDER", help="data set to calibrate --int8 on, instead of the training's"
    )
    parser.add_argument("--recognitions", type=at_least(2 * EVERY), default=500)
    parser.add_argument("--photos", type=at_least(1), default=20)
    parser.add_argument("--large", type=at_least(1), default=3, help="photos of each large size")
    arguments = parser.parse_args(argv)
    trained = load_trained(arguments.trained)
    paths = evenly_spaced(find_images([arguments.images]), arguments.photos)
    rows: list[dict[str, Any]] = []
    stated = conditions(
        best_device(), model=trained.config.architecture, size=trained.config.test_size, int8=arguments.int8
    )
    with tempfile.TemporaryDirectory() as name:
        options = ["--int8"] * arguments.int8 + (["-d", arguments.data] if arguments.data else [])
        folder = phone.main([arguments.trained, *options, "--output", str(Path(name, "app"))]).folder
        photos: dict[str, list[Path]] = {"as they are": [], **{kind: [] for kind in LARGE}}
        for number, path in enumerate(paths):
            photos["as they are"].append(Path(shutil.copy(path, folder / f"photo-{number}{path.suffix}")))
            for kind, size in LARGE.items() if number < arguments.large else ():
                photos[kind].append(folder / f"{kind[:2]}-{number}.jpg")
                make_large(path, size, photos[kind][-1])
        with CountingServer(folder) as server, browser() as driver:
            driver.set_script_timeout(600)
            started = time.perf_counter()
            driver.get(f"http://localhost:{server.server_port}/")
            wait_for(driver, "the app", "document.body.dataset.ready === ''")
            seconds = round(time.perf_counter() - started, 1)
            stated["browser"] = f"Chromium {driver.capabilities['browserVersion']}"
            rows.append({"what": "first visit", "megabytes": round(server.sent / 1e6, 2), "seconds": seconds})
            for kind, files in photos.items():
                milliseconds, probabilities = recognize(driver, [file.name for file in files], len(files))
                differences, same = [], 0
                for prediction, row in zip(predict(trained, files), probabilities, strict=True):
                    found = dict(zip(trained.class_names, row, strict=True))
                    differences.append(max(abs(found[name] - value) for name, value in prediction.classes))
                    same += max(found, key=found.get) == prediction.classes[0][0]
                rows.append(
                    {"what": f"photos {kind}", "photos": len(files), "milliseconds": spread(milliseconds), "same top-1": same,
                     "probabilities differ by": spread(differences, 5)}
                )  # fmt: skip
            names = [file.name for file in photos["as they are"]]
            memory = []
            for _ in progress_bar(
                range(arguments.recognitions // EVERY), description="recognizing", unit=f" × {EVERY}"
            ):
                milliseconds, _ = recognize(driver, names, EVERY)
                memory.append(round(renderer_megabytes(driver)))
            rows.append({"what": f"memory after each {EVERY} recognitions", "megabytes": memory})
            server.shutdown()
    write_report(arguments.output, stated, rows)
    for row in rows:
        print("; ".join(f"{key}: {value}" for key, value in row.items()))
    print_conditions(stated)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
