"""The app for phones: its files fit together and into a browser's cache; what is missing is named."""

import hashlib
import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import phone
from deployment.phone import build, serve
from deployment.phone.build import build_app, install_runtime
from deployment.phone.icons import BLUE, draw_icon
from deployment.phone.model import write_model
from deployment.trained import load_trained
from utils.errors import ConfigError, RunError

ABOUT = {"class_names": ["Lada 2101", "Škoda Favorit"], "score": "probability", "threshold": 0.5, "about": "two"}


@pytest.fixture
def runtime(tmp_path, monkeypatch) -> Path:
    """What npm installs, in small."""
    folder = tmp_path / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        (folder / "dist" / name).write_bytes(name.encode())
    monkeypatch.setattr(build, "install_runtime", lambda source: folder)
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "model"
    path.write_bytes(b"a model")
    return path


def kept_files(folder: Path) -> dict[str, dict]:
    """Returns what the service worker keeps."""
    return json.loads(re.search(r"const FILES = (\{.*?\n\});", (folder / "sw.js").read_text("utf-8"), re.DOTALL)[1])


def test_the_service_worker_keeps_every_file_by_its_content(runtime, model, tmp_path):
    app = build_app(model, ABOUT, tmp_path / "app")
    files = {path.name: path.read_bytes() for path in app.folder.iterdir() if path.name != "sw.js"}
    assert kept_files(app.folder) == {
        name: {"hash": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in files.items()
    }
    assert app.sizes == {path.name: path.stat().st_size for path in app.folder.iterdir()}
    assert json.loads(files["model.json"]) == ABOUT and files["model.onnx"] == b"a model"
    assert "{{" not in (app.folder / "sw.js").read_text("utf-8") and app.version in (app.folder / "sw.js").read_text(
        "utf-8"
    )


def test_every_file_that_the_page_names_is_there(runtime, model, tmp_path):
    folder = build_app(model, ABOUT, tmp_path / "app").folder
    page = (folder / "index.html").read_text("utf-8")
    named = set(re.findall(r'(?:src|href)="([^"]+)"', page))
    named |= {icon["src"] for icon in json.loads((folder / "manifest.json").read_text("utf-8"))["icons"]}
    used = set()
    for script in folder.glob("*.js"):
        if script.name != "ort.js":
            text = script.read_text("utf-8")
            named |= set(re.findall(r'(?:from|import) "\./([\w.-]+)"', text))
            named |= set(re.findall(r'(?:Worker|register|bytesOf|fetch)\("([\w.-]+)"', text))
            used |= set(re.findall(r'\$\("([\w-]+)"\)', text))
    assert {"app.js", "style.css", "manifest.json", "icon-512.png", "recognizer.js", "ort.bin", "sw.js"} <= named
    assert named <= {path.name for path in folder.iterdir()}
    assert used and used <= set(re.findall(r'id="([\w-]+)"', page))


def test_the_version_follows_the_content(runtime, model, tmp_path):
    first, same = (build_app(model, ABOUT, tmp_path / name).version for name in ("first", "same"))
    assert first == same
    model.write_bytes(b"another model")
    assert build_app(model, ABOUT, tmp_path / "first").version != first
    model.write_bytes(b"a model")
    assert build_app(model, ABOUT | {"threshold": 0.6}, tmp_path / "first").version != first


def test_only_an_app_is_replaced_and_only_by_a_whole_one(runtime, model, tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    old = build_app(model, ABOUT, folder)
    (folder / "left.txt").touch()
    (runtime / "dist" / "ort-wasm-simd-threaded.wasm").rename(tmp_path / "wasm")
    with pytest.raises(OSError, match="simd-threaded"):
        build_app(model, ABOUT, folder)
    assert {path.name for path in folder.iterdir()} == old.sizes.keys() | {"left.txt"}
    (tmp_path / "wasm").rename(runtime / "dist" / "ort-wasm-simd-threaded.wasm")
    assert build_app(model, ABOUT, folder).sizes.keys() == {path.name for path in folder.iterdir()}
    assert not list(tmp_path.glob(".*"))

    (folder / ".git").mkdir()
    with pytest.raises(ConfigError, match="app holds other files"):
        build_app(model, ABOUT, folder)
    (folder / ".git").rmdir()
    (folder / "sw.js").write_text("// of another site")
    with pytest.raises(ConfigError, match="app holds other files"):
        build_app(model, ABOUT, folder)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").touch()
    with pytest.raises(ConfigError, match="letters holds other files"):
        build_app(model, ABOUT, tmp_path / "letters")


def test_without_node_the_message_says_what_to_install(tmp_path, monkeypatch):
    lock = {"packages": {"node_modules/onnxruntime-web": {"version": "1.2.3"}}}
    (tmp_path / "package-lock.json").write_text(json.dumps(lock))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="npm, which comes with Node"):
        install_runtime(tmp_path)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho network is unreachable >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(RunError, match="npm ci failed: network is unreachable"):
        install_runtime(tmp_path)
    installed = tmp_path / "node_modules" / "onnxruntime-web"
    installed.mkdir(parents=True)
    (installed / "package.json").write_text('{"version": "1.2.3"}')
    assert install_runtime(tmp_path) == installed  # without npm
    (installed / "package.json").write_text('{"version": "1.2.2"}')
    with pytest.raises(RunError, match="npm ci failed"):
        install_runtime(tmp_path)


def test_the_lock_file_names_no_host():
    lock = json.loads((build.SOURCE / "package-lock.json").read_text("utf-8"))
    assert lock["packages"] and "http" not in json.dumps(lock)


@pytest.mark.parametrize("side", build.ICON_SIDES)
def test_no_mask_of_a_home_screen_cuts_the_icon(side):
    icon = draw_icon(side)
    assert icon.mode == "RGB" and icon.size == (side, side)
    y, x = np.nonzero((np.asarray(icon) != np.asarray(Image.new("RGB", (1, 1), BLUE))).any(axis=2))
    distance = np.hypot(x + 0.5 - side / 2, y + 0.5 - side / 2).max()
    assert 0.3 * side < distance < 0.4 * side  # the W3C's safe zone of maskable icons is a circle of 80 %


def test_the_server_sends_types_that_browsers_take_and_nothing_outside(runtime, model, tmp_path):
    import threading

    folder = build_app(model, ABOUT, tmp_path / "app").folder
    (tmp_path / "secret").write_text("secret")
    with serve.open_server(folder, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        types = {}
        for name in ("", "app.js", "style.css", "manifest.json", "model.onnx", "ort.bin", "sw.js"):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{name}") as response:
                types[name] = response.headers["Content-Type"]
                assert response.headers["Cache-Control"] == "no-cache" and response.headers["Content-Encoding"] is None
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/../secret")
        with pytest.raises(ConfigError, match=f"--port {server.server_port} is in use"):
            serve.open_server(folder, server.server_port)
        server.shutdown()
    assert types[""] == "text/html" and types["app.js"] == types["sw.js"] == "text/javascript"


def test_serving_shows_an_address_for_the_network_and_what_http_cannot_do(tmp_path, monkeypatch, capsys):
    def stop(server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", stop)
    monkeypatch.setattr(serve, "network_address", lambda: "192.0.2.7")
    with pytest.raises(KeyboardInterrupt):
        phone.serve(tmp_path, 0)
    printed = capsys.readouterr().out
    port = re.search(r"http://localhost:(\d+)/", printed)[1]
    assert f"http://192.0.2.7:{port}/" in printed and "plain http" in printed and "publish the folder" in printed
    assert serve.qr_code(f"http://192.0.2.7:{port}/") in printed

    monkeypatch.setattr(serve, "network_address", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        phone.serve(tmp_path, 0)
    assert "same network" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["65536", "http", "8000.0"])
def test_a_wrong_port_is_named(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        phone.parse_arguments(["last", "--port", text])
    assert f"{text!r}: expected a number from 0 to 65535" in capsys.readouterr().err


@pytest.mark.slow
def test_the_app_of_8_bits_states_the_accuracy_of_its_own_file(trained_run, tmp_path):
    trained = load_trained(str(trained_run))
    about = {}
    for name, int8 in (("whole", False), ("small", True)):
        about[name] = write_model(trained, tmp_path / name, int8=int8, data=None)["about"]
    assert (tmp_path / "small").stat().st_size < 0.6 * (tmp_path / "whole").stat().st_size
    assert re.search(r", 7 car models, [\d.]+% right on validation photos$", about["whole"])
    assert re.search(r", 7 car models, [\d.]+% right on 14 validation photos$", about["small"])
