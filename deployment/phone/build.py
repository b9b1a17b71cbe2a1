"""Builds the app: a folder of static files that any web server can send."""

import gzip
import hashlib
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployment.phone.icons import draw_icon
from utils.errors import ConfigError, RunError
from utils.files import make_folder, not_writable

SOURCE = Path(__file__).parent / "app"
RUNTIME = Path("node_modules", "onnxruntime-web")
# Some servers send `.gz` files as if the browser had asked for compression, and some do not know `.mjs` and `.wasm`:
# these names are sent as they are by every server.
RUNTIME_SCRIPT, RUNTIME_WASM = "ort.js", "ort.bin"
MODEL, ABOUT_MODEL, PAGE, SERVICE_WORKER = "model.onnx", "model.json", "index.html", "sw.js"
ICON_SIDES = (180, 192, 512)  # iOS, Android's home screen, its start screen
MANIFEST = {
    "name": "Which car is it?",
    "short_name": "Which car?",
    "description": "Recognizes the car in a photo, on this device and without a network.",
    "start_url": "./",
    "scope": "./",
    "display": "standalone",
    "background_color": "#f4f5f7",
    "theme_color": "#0b57a4",
    "icons": [
        {"src": f"icon-{side}.png", "sizes": f"{side}x{side}", "type": "image/png", "purpose": purpose}
        for side in ICON_SIDES[1:]
        for purpose in ("any", "maskable")
    ],
}


@dataclass(frozen=True)
class App:
    """An app.

    Attributes:
        folder: Its files.
        version: A hash of all of them.
        sizes: Bytes of each file, as a server sends it without compression.
    """

    folder: Path
    version: str
    sizes: dict[str, int]

    @property
    def size(self) -> int:
        """The bytes of a first visit: the page itself is loaded once to be shown and once to be kept."""
        twice = sum(size for name, size in self.sizes.items() if not name.startswith(("model.onnx", "ort.", "icon-")))
        return sum(self.sizes.values()) + twice


def build_app(model: Path, about: dict[str, Any], folder: Path) -> App:
    """Writes the app to `folder`, which is then complete or as it was before.

    Args:
        model: An ONNX file from `image`, uint8 (H, W, 3), to `probabilities` (classes,).
        about: The content of `model.json`: `class_names`, `score`, `threshold` (None for none) and `about`, a line.
        folder: A new or empty folder, or that of an older app.

    Raises:
        ConfigError: `folder` holds something else.
        RunError: Node is missing, its packages cannot be installed, or `folder` cannot be written.
    """
    if folder.exists() and not is_replaceable(folder):
        raise ConfigError(f"--output {folder} holds other files; give a new folder, or that of an older app")
    runtime = install_runtime(SOURCE)
    folder = folder.resolve()
    make_folder(folder.parent, key="--output")
    try:
        partial = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial")
    except OSError as error:
        raise not_writable(folder, error, "--output") from error
    with partial as name:
        draft = Path(name, "app")
        app = _write(draft, model, about, runtime)
        if folder.exists():
            folder.rename(Path(name, "old"))
        draft.rename(folder)
    return App(folder, app.version, app.sizes)


def is_replaceable(folder: Path) -> bool:
    """Returns whether `folder` is empty, or holds an app of this project and no folders, such as `.git`."""
    if not folder.is_dir():
        return False
    entries = list(folder.iterdir())
    worker = folder / SERVICE_WORKER
    is_app = worker.is_file() and worker.read_bytes().startswith(b"// The service worker of version ")
    return not entries or (is_app and not any(entry.is_dir() for entry in entries))


def install_runtime(source: Path) -> Path:
    """Installs what `package-lock.json` names, if it is not there already, and returns onnxruntime-web's folder.

    Raises:
        RunError: Node is missing, or the packages cannot be had.
    """
    wanted = json.loads((source / "package-lock.json").read_text("utf-8"))["packages"][RUNTIME.as_posix()]["version"]
    found = source / RUNTIME / "package.json"
    if found.exists() and json.loads(found.read_text("utf-8"))["version"] == wanted:
        return found.parent
    npm = shutil.which("npm")
    if npm is None:
        raise RunError(
            "The app is built with npm, which comes with Node.js 18 or later; install it from your system's packages or "
            "from nodejs.org. Node is needed only here: neither the phone nor the server needs it"
        )
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    if done.returncode or not found.exists():
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RunError(f"{source}: npm ci failed: {' '.join(lines[:3])}; it needs a network, or npm's cache")
    return found.parent


def _write(folder: Path, model: Path, about: dict[str, Any], runtime: Path) -> App:
    folder.mkdir()
    for path in sorted(SOURCE.iterdir()):
        if path.suffix in (".html", ".css", ".js"):
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(model, folder / MODEL)
    (folder / ABOUT_MODEL).write_text(json.dumps(about, ensure_ascii=False), "utf-8")
    (folder / "manifest.json").write_text(json.dumps(MANIFEST, indent=1), "utf-8")
    for side in ICON_SIDES:
        draw_icon(side).save(folder / f"icon-{side}.png", optimize=True)
    shutil.copyfile(runtime / "dist" / "ort.wasm.bundle.min.mjs", folder / RUNTIME_SCRIPT)
    wasm = (runtime / "dist" / "ort-wasm-simd-threaded.wasm").read_bytes()
    (folder / RUNTIME_WASM).write_bytes(gzip.compress(wasm, mtime=0))  # without the time: equal content, equal hash
    worker = folder / SERVICE_WORKER
    template = worker.read_text("utf-8")
    files = {
        path.name: {"hash": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path != worker
    }
    listing = json.dumps(files, indent=2)
    version = hashlib.sha256((template + listing).encode()).hexdigest()[:12]
    worker.write_text(template.replace("{{version}}", version).replace("{{files}}", listing), "utf-8")
    return App(folder, version, {path.name: path.stat().st_size for path in sorted(folder.iterdir())})
