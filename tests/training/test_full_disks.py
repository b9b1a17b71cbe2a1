"""Disks that are full or read-only, as small file systems of their own: one line, and a run that can go on."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import train
from datamodules.readers.archives import extract_archive
from tests.support.data_sets import write_updated_release
from tests.support.small_runs import assert_same_run, only_run, run
from training.recorder import Recorder
from utils.errors import ConfigError, DataError, RunError
from utils.files import replacing
from utils.logs import start_logging

SMALL = ("architecture=ghost", "width_multiplier=0.2", "out_channels=32", "num_epochs=3")


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size in memory, and removes it at the end."""
    folder = tmp_path / "disk"

    def mount(size: str) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("only root may mount a file system here")
        return folder

    yield mount
    start_logging("INFO")  # closes the log of a run
    subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


@pytest.fixture(scope="module")
def three_epochs(cars, tmp_path_factory) -> Path:
    return run(cars, tmp_path_factory.mktemp("whole"), *SMALL)


def fill(disk: Path, *, but: int) -> None:
    """Fills a disk, but for some bytes."""
    free = os.statvfs(disk)
    with (disk / "other").open("wb") as file:
        try:
            file.write(bytes(max(0, free.f_bavail * free.f_frsize - but)))
        except OSError as error:
            assert error.errno == errno.ENOSPC


@pytest.mark.slow
@pytest.mark.parametrize(
    ("but", "file"), [pytest.param(200_000, r"(last|best)\.ckpt", marks=pytest.mark.slow), (0, r"metrics\.csv")]
)
def test_a_disk_that_fills_in_training_leaves_a_run_that_goes_on(
    cars, three_epochs, disk, monkeypatch, capsys, but, file
):
    output = disk("30m") / "output"
    original = Recorder.on_train_epoch_start

    def filling(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == 1:
            trainer.strategy.checkpoint_io.wait()  # for the first epoch's
            fill(output.parent, but=but)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_train_epoch_start", filling)
        with pytest.raises(
            RunError, match=rf"{file} cannot be written: .*; make room, or set another output_path"
        ) as caught:
            run(cars, output, *SMALL)
    assert "\n" not in str(caught.value)
    said = capsys.readouterr().err
    assert "Traceback" not in said and "Logging error" not in said
    folder = only_run(output)
    assert f"to resume: python train.py --resume {folder}" in said
    assert not list(folder.rglob("*.partial"))
    (output.parent / "other").unlink()
    train.main(["--resume", str(folder)])
    assert_same_run(three_epochs, folder)


def test_a_cache_that_does_not_fit_is_said_and_nothing_of_it_is_left(cars, disk, tmp_path):
    cache = disk("28k")
    with pytest.raises(RunError, match=r"\.photos cannot be written: No space left .*set another cache_path"):
        run(cars, tmp_path / "output", f"cache_path={cache}")
    assert not list(cache.iterdir())


def test_an_archive_that_does_not_fit_is_said_and_nothing_of_it_is_left(disk, tmp_path):
    write_updated_release(tmp_path / "archives", archives=True, train_per_class=20)
    small = disk("40k")
    with pytest.raises(DataError, match=r"No space left on device; make room on the disk"):
        extract_archive(tmp_path / "archives/car_ims.tgz", small / "car_ims", "car_ims")
    assert not list(small.iterdir())


def test_a_tracking_store_that_does_not_fit_leaves_nothing_half_made(disk):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from utils.tracking.mlflow import ARTIFACTS, open_store

    small = disk("200k")
    with pytest.raises(RunError, match=r"mlflow\.db.*disk is full"):
        open_store(small, to_write=True)
    assert {path.name for path in small.iterdir()} <= {"mlflow.db.lock", ARTIFACTS}


def test_an_output_that_can_only_be_read_is_refused_with_one_line(cars, disk, tmp_path):
    output = disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", output], check=True)
    with pytest.raises(
        RunError,
        match=r"^\S+ cannot be written: Read-only file system; make room, or set another output_path$",
    ):
        train.main(["-d", str(cars), "--set", f"output_path={output}", "--set", "trackers=[]"])
    with pytest.raises(ConfigError, match=r"^cache_path: .* cannot be written to \(Read-only file system\)"):
        run(cars, tmp_path / "output", f"cache_path={output / 'cache'}")


@pytest.mark.slow
def test_a_run_whose_disk_has_become_read_only_goes_on_when_it_can_be_written(cars, three_epochs, disk):
    output = disk("30m") / "output"
    folder = run(cars, output, *SMALL[:3], "num_epochs=1")
    start_logging("INFO")
    subprocess.run(["mount", "-o", "remount,ro", output.parent], check=True)
    with pytest.raises(RunError, match=r"train\.log cannot be written: Read-only file system"):
        train.main(["--resume", str(folder), "--set", "num_epochs=3"])
    subprocess.run(["mount", "-o", "remount,rw", output.parent], check=True)
    train.main(["--resume", str(folder), "--set", "num_epochs=3"])
    assert_same_run(three_epochs, folder)


def test_a_file_on_a_full_disk_is_as_it_was(disk):
    path = disk("100k") / "run.json"
    path.write_text("old")
    with (
        pytest.raises(RunError, match=r"run\.json cannot be written: No space left on device"),
        replacing(path) as partial,
    ):
        partial.write_bytes(bytes(200_000))
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
