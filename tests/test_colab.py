"""The Colab notebook, executed whole in a kernel of its own; stand-ins are there for google.colab only."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.data_sets import write_updated_release
from tests.support.small_runs import rows
from utils.machine import PROJECT

NOTEBOOK = PROJECT / "train_colab.ipynb"
LIMIT = 120  # seconds for a cell
FAST = "architecture=shuff_v2_x05 dropout=null out_channels=null image_size=[32,32] batch_size=8 num_workers=0"
STAND_INS = {
    "__init__.py": "",
    "drive.py": """
import os
from pathlib import Path


def mount(mountpoint):
    Path(mountpoint).mkdir()
    Path(mountpoint, "MyDrive").symlink_to(os.environ["STAND_IN_DRIVE"])
""",
    # Asks for the page and its data as a browser does through Colab's proxy, under another name.
    "output.py": """
import json
import os
import urllib.request
from pathlib import Path

NAME = "5000-m-s-1.us-east1-0.prod.colab.dev"


def serve_kernel_port_as_iframe(port, path="/", width="100%", height="400", cache_in_notebook=False):
    def fetch(path, data=None):
        headers = {"Host": NAME, "Origin": f"https://{NAME}", "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)) as answer:
            return dict(answer.headers), answer.read().decode()

    pages = [fetch(path), fetch("/")]
    experiments = fetch("/ajax-api/2.0/mlflow/experiments/search", b'{"max_results": 10}')
    ids = [each["experiment_id"] for each in json.loads(experiments[1])["experiments"]]
    wanted = json.dumps({"experiment_ids": ids, "max_results": 10}).encode()
    runs = fetch("/ajax-api/2.0/mlflow/runs/search", wanted)
    Path(os.environ["STAND_IN_CALLS"]).write_text(json.dumps({"pages": pages, "runs": json.loads(runs[1])["runs"]}))
""",
}


def _other_files(_: str, names: list[str]) -> set[str]:
    """Returns the names that are not part of the project."""
    return {name for name in names if name in ("input", "output", "cache") or (name[0] == "." and name != ".gitignore")}


class Colab:
    """Google Drive, which lasts, and machines with a notebook, which do not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cars = folder / "Drive" / "cars"
        self.output = self.cars / "output"
        self.calls = folder / "calls.json"
        for name, text in STAND_INS.items():
            path = folder / "stand_ins" / "google" / "colab" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        shutil.copytree(PROJECT, self.cars / "project", ignore=_other_files)

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": str(self.folder / "stand_ins"),
            "STAND_IN_DRIVE": str(self.cars.parent),
            "STAND_IN_CALLS": str(self.calls),
            "COLAB_RELEASE_TAG": "release-colab",  # as on Colab
            "PIP_NO_INDEX": "1",  # whoever runs the tests has all requirements, and no test installs anything
            "PIP_NO_DEPS": "1",  # nor looks for seconds through all that torch and MLflow require
            "OMP_NUM_THREADS": "1",
            "IPYTHONDIR": str(self.folder / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "jupyter"),
        }

    def run_all(self, *, after_first_epoch: Callable[[int], None] | None = None, **form: str) -> str:
        """Executes the notebook on a fresh machine, with these values of its form, and returns what it printed.

        Args:
            after_first_epoch: Called once with the kernel's process id as soon as there is a checkpoint.
            form: Values by the names of the form's fields.
        """
        machine = self.folder / f"machine{len(list(self.folder.glob('machine*')))}"
        machine.mkdir()
        self.notebook = filled_in(form)
        from nbclient import NotebookClient

        client = NotebookClient(
            self.notebook, timeout=LIMIT, kernel_name="python3", resources={"metadata": {"path": str(machine)}}
        )
        kernel = client.create_kernel_manager()
        started: list[psutil.Process] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                if list(self.output.glob("*/checkpoints/last.ckpt")):
                    after_first_epoch(kernel.provisioner.process.pid)
                    return

        if after_first_epoch:
            threading.Thread(target=watch).start()
        client.on_cell_executed = lambda **_: started.extend(family(kernel.provisioner.process.pid))
        try:
            client.execute(env=self.environment())
        finally:
            ended.set()
            end(started)  # the dashboard stays open as long as its machine is there
        return "".join(output.get("text", "") for cell in self.notebook.cells for output in cell.get("outputs", []))

    def the_run(self) -> Path:
        (folder,) = {path.parent for path in self.output.glob("*/run.json")}
        return folder


def read_notebook() -> Any:
    import nbformat  # takes three seconds, which no other test should wait for

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def filled_in(form: dict[str, str]) -> Any:
    """Returns the notebook with other values in its form, each of which it must have."""
    notebook = read_notebook()
    (settings,) = (cell for cell in notebook.cells if cell.id == "settings")
    for name, value in form.items():
        settings.source, count = re.subn(
            rf'(?m)^{name} = ".*"  # @param', lambda _, line=f"{name} = {value!r}  # @param": line, settings.source
        )
        assert count == 1, name
    return notebook


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def disconnect(pid: int) -> None:
    """Ends a machine as Colab does: all at once, without a word."""
    end([psutil.Process(pid), *family(pid)])


def press_stop(pid: int) -> None:
    os.killpg(pid, signal.SIGINT)


def read(folder: Path) -> tuple[list[int], dict]:
    return [int(row["epoch"]) for row in rows(folder)], json.loads((folder / "run.json").read_text())


@pytest.fixture
def colab(tmp_path) -> Colab:
    return Colab(tmp_path)


@pytest.fixture
def archives(colab) -> Path:
    write_updated_release(colab.cars / "data", archives=True, image_sizes=[(40, 32)], train_per_class=6)
    return colab.cars / "data"


@pytest.mark.slow
def test_a_training_goes_on_after_a_disconnect(colab, archives):
    form = {"data_source": "Drive", "experiment": "experiments/C-14.yml"}
    from nbclient.exceptions import DeadKernelError

    with pytest.raises(DeadKernelError):
        colab.run_all(after_first_epoch=disconnect, overrides=f"{FAST} num_epochs=500", **form)
    folder = colab.the_run()
    before, record = read(folder)
    assert record["status"] == "running" and 1 <= len(before) < 100

    # A newer run with other settings is not the one to go on with.
    other = colab.output / "other"
    shutil.copytree(folder, other)
    (other / "config.yml").write_text(re.sub(r"(?m)^seed: .*$", "seed: 7", (other / "config.yml").read_text()))
    (other / "run.json").write_text(json.dumps(record | {"name": other.name, "run_id": "7"}))
    (other / "checkpoints/last.ckpt").touch()

    # Another machine, with the project from git and another number of epochs, which a run that goes on may change.
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-C", str(colab.cars / "project")]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    (colab.cars / "project").rename(colab.folder / "repository")
    epochs = len(before) + 2
    form["repository"] = (colab.folder / "repository").as_uri()
    said = colab.run_all(overrides=f"{FAST} num_epochs={epochs}", **form)

    assert {path.parent for path in colab.output.glob("*/run.json")} == {folder, other} and read(other)[0] == before
    after, record = read(folder)
    assert after == list(range(epochs)) and record["status"] == "completed" and record["resumed"] == 1
    assert record["runtime"] == "colab" and record["experiment_id"] == "C-14"
    assert "+changes" not in record["commit"]
    assert (folder / "checkpoints/best.ckpt").is_file()

    copies = {path.name: path.read_bytes() for path in (colab.folder / "machine1/Drive").iterdir() if path.is_file()}
    assert copies == {path.name: path.read_bytes() for path in archives.iterdir()}
    for name in ("torch", "torchvision"):
        assert f"{name} {version(name)}, as Colab has it\n" in said

    pictures = [
        output["data"]["image/png"]
        for cell in colab.notebook.cells if cell.id == "curves"
        for output in cell.outputs if output.output_type == "display_data"
    ]  # fmt: skip
    assert len(pictures) == 2 and len(set(pictures)) == 2 and folder.name in said

    with sqlite3.connect(colab.output / "mlflow.db") as store:
        statement = (
            "SELECT step FROM metrics JOIN runs USING (run_uuid) "
            "WHERE name = ? AND key = 'valid_loss' AND lifecycle_stage = 'active' ORDER BY step"
        )
        assert [step for (step,) in store.execute(statement, [folder.name])] == after
        active = dict(store.execute("SELECT name, status FROM runs WHERE lifecycle_stage = 'active'"))
    assert active == {folder.name: "FINISHED", other.name: "KILLED"}

    seen = json.loads(colab.calls.read_text())
    assert '<div id="root"' in seen["pages"][1][1]
    assert all("x-frame-options" not in map(str.lower, headers) for headers, _ in seen["pages"])  # they are in a frame
    assert {run["info"]["run_name"] for run in seen["runs"]} == {folder.name, other.name}


@pytest.mark.slow
def test_the_stop_button_saves_the_demos_training_and_ends_the_notebook(colab):
    settings = FAST.replace("batch_size=8", "batch_size=100")
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="exit code 130"):
        colab.run_all(after_first_epoch=press_stop, overrides=f"{settings} num_epochs=500 trackers=[]")
    folder = colab.the_run()
    epochs, record = read(folder)
    assert record["status"] == "interrupted" and record["error"].startswith("Interrupted: SIGINT")
    assert record["experiment_id"] == "demo" and 1 <= len(epochs) < 100
    assert (folder / "curves.png").is_file()
    executed = [cell.id for cell in colab.notebook.cells if cell.get("execution_count")]
    assert executed[-2:] == ["data", "train"]


@pytest.mark.slow
def test_the_notebook_is_valid_and_empty():
    notebook = read_notebook()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert [cell.id for cell in cells] == [
        "settings", "drive", "project", "install", "data", "train", "curves", "dashboard"
    ]  # fmt: skip
    assert notebook.metadata["accelerator"] == "GPU" and notebook.metadata["colab"]["gpuType"] == "T4"


@pytest.mark.slow
def test_there_are_no_curves_before_the_first_epoch(tmp_path, capsys):
    (cell,) = (cell for cell in read_notebook().cells if cell.id == "curves")
    (tmp_path / "ghost_20261123000000").mkdir()
    exec(cell.source, {"output": tmp_path})
    assert capsys.readouterr().out == f"no run in {tmp_path} has completed an epoch yet\n"
