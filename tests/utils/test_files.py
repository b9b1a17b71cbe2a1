"""Files are whole or not there, and what a killed process has begun is removed by the next, but nothing else."""

import os
import platform
import subprocess
import sys
import time

import pytest

from utils.errors import RunError
from utils.files import ABANDONED_SECONDS, remove_partial, replacing, write_text


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
