"""The benchmarks that kill trainings and that let one run for long do what they say, on a small scale."""

import json
import subprocess
import sys

import pytest

from utils.config import CONFIG_FILE

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="they look into /proc")]
pytest.importorskip("mlflow", reason="mlflow is not installed")


def run_module(name, *arguments):
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=CONFIG_FILE.parent, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_trainings_that_are_killed_go_on_to_the_same_end(tmp_path):
    said = run_module("killed_runs", "--kills", 4, "--seed", 7, "--output", tmp_path / "killed.json")
    result = json.loads((tmp_path / "killed.json").read_text())
    assert result["kills"] >= 4 and result["equal"] == result["trainings"] > 0, said
    assert [case["differences"] for case in result["cases"]] == [[]] * result["trainings"]


def test_in_a_short_soak_neither_memory_nor_open_files_nor_threads_grow(tmp_path):
    said = run_module("soak", "--epochs", 24, "--output", tmp_path / "soak.json")
    result = json.loads((tmp_path / "soak.json").read_text())
    slopes = result["slopes"]
    assert len(result["samples"]) >= 12 and slopes["main_kB"]["first"] > 50_000, said
    # Caches still fill by some 50 kB an epoch, and files are opened and closed; a leak is a whole batch, file or thread.
    most = {"main_kB": 500, "workers_kB": 500, "main_files": 0.5, "workers_files": 0.5, "main_threads": 0.5}
    assert {key: slopes[key]["an_epoch"] for key in most if slopes[key]["an_epoch"] > most[key]} == {}, said
