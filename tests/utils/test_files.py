"""Files are whole or not there, and what a killed process has begun is removed by the next, but nothing else."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.errors import ConfigError, RunError
from utils.files import (
    ABANDONED_SECONDS,
    make_folder,
    make_timestamped_folder,
    remove_partial,
    replacing,
    write_csv,
    write_text,
)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "run.json"
    write_text(path, "old")
    message = r"run.json cannot be written: the disk; make room, or set another cache_path"
    with pytest.raises(RunError, match=message), replacing(path, key="cache_path") as partial:
        partial.write_text("half of")
        raise OSError("the disk")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_error_of_reading_is_not_blamed_on_the_file_that_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image\.jpg"), replacing(tmp_path / "model.onnx") as partial:
        partial.write_text("half of")
        (tmp_path / "image.jpg").read_bytes()
    with (
        pytest.raises(RunError, match=r"model\.onnx cannot be written: No such file or directory; make room"),
        replacing(tmp_path / "missing" / "model.onnx") as partial,
    ):
        partial.write_text("half of")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no fcntl on Windows, which cannot flush a folder")
def test_a_renamed_file_is_flushed_with_its_folder_after_the_rename(tmp_path, monkeypatch):
    import fcntl

    calls, rename, flush = [], os.replace, os.fsync
    modes = {os.O_RDWR: "to be written", os.O_RDONLY: "to be read"}  # Windows flushes only what is open to be written

    def renamed(source, target):
        calls.append(f"rename to {Path(target).name}")
        rename(source, target)

    def flushed(descriptor):
        mode = modes[fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE]
        calls.append(f"flush, open {mode}: {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        flush(descriptor)

    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "fsync", flushed)
    write_text(tmp_path / "run.json", "new")
    assert [call.partition(".run.json")[0] for call in calls] == [
        "flush, open to be written: ", "rename to run.json", f"flush, open to be read: {tmp_path.name}"
    ]  # fmt: skip


def test_csv_files_keep_every_digit_and_fill_what_is_missing(tmp_path):
    write_csv(tmp_path / "a.csv", [{"x": 0.1 + 0.2, "z": 1}, {"x": 'a "b", c', "y": None}], ("x", "y"))
    assert (tmp_path / "a.csv").read_bytes() == b'x,y\n0.30000000000000004,\n"a ""b"", c",\n'


def test_a_folder_that_cannot_be_made_is_named_with_the_key_that_decides_on_it(tmp_path):
    (tmp_path / "file").touch()
    for make in (make_folder, lambda path: make_timestamped_folder(path, "check")):
        with pytest.raises(
            RunError, match=r"file/below cannot be written: Not a directory; make room, or set another out"
        ):
            make(tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match=r"^--output: .*file is a file; expected a folder$"):
        make_folder(tmp_path / "file", key="--output")


def test_what_killed_processes_have_begun_is_removed_and_nothing_else(tmp_path):
    here, dead = platform.node(), dead_process()
    gone = [
        f".last.ckpt.{here}.{dead}.partial",
        f".mlflow.db.{here}.{dead}.partial-journal",
        ".last.ckpt.far.away.7.partial",
    ]
    kept = [f".last.ckpt.{here}.{os.getpid()}.partial", ".best.ckpt.far.away.8.partial", ".training", "last.ckpt"]
    for name in (*gone, *kept):
        (tmp_path / name).write_text("half")
    long_ago = time.time() - ABANDONED_SECONDS - 60
    os.utime(tmp_path / gone[-1], (long_ago, long_ago))
    remove_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_partial(tmp_path, alone=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept[2:])
