"""The proofs that kill trainings and that train for long work on a small scale."""

import json
import subprocess
import sys

import pytest

from utils.machine import PROJECT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="they read /proc"),
]


def run_proof(name, report, *arguments):
    command = [sys.executable, "-m", f"measurements.proofs.{name}", *map(str, arguments), "--output", str(report)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text()), done.stdout


def test_killed_trainings_reach_the_same_end(tmp_path):
    result, output = run_proof("killed_runs", tmp_path / "killed.json", "--kills", 1, "--seed", 7)
    assert result["kills"] >= 1 and result["equal"] == result["trainings"] > 0, output
    assert [case["differences"] for case in result["cases"]] == [[]] * result["trainings"]


def test_memory_open_files_and_threads_do_not_grow(tmp_path):
    result, output = run_proof("soak", tmp_path / "soak.json", "--epochs", 16)
    slopes = result["slopes"]
    assert len(result["samples"]) >= 12 and slopes["main_kB"]["first"] > 50_000, output
    # Caches still fill by some 50 kB an epoch, and files are opened and closed; a leak is a whole batch, file or thread.
    limits = {"main_kB": 500, "workers_kB": 500, "main_files": 0.5, "workers_files": 0.5, "main_threads": 0.5}
    assert {key: slopes[key]["per_epoch"] for key in limits if slopes[key]["per_epoch"] > limits[key]} == {}, output
