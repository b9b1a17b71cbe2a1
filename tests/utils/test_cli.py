"""Commands: a terminal, a pipe or a log reader that goes away ends no training, and never with exit code 0."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.small_runs import only_run
from utils.cli import set_options
from utils.machine import PROJECT, SPIN_VARIABLES, set_thread_policy
from utils.runs.folder import read_record
from utils.runs.metrics import read_rows

COMMAND = """
import logging, os, signal, sys, time
from pathlib import Path
from utils.cli import run_command
from utils.errors import Interrupted, RunError
from utils.logs import log_to_file, start_logging
from utils.progress import progress_bar
def main(argv):
    start_logging("INFO")
    log_to_file(Path(sys.argv[1]))
    print("ready", file=sys.stderr)
    os.read(0, 1)  # until the reader has gone
    for step in progress_bar(range(3), description="training", unit=" steps"):
        logging.getLogger("x").info("step %d", step)
    print("done", flush=True)
    print("done", file=sys.stderr)
    {end}
sys.exit(run_command(main, outlives_terminal={outlives}))
"""
INTERRUPTED = "raise Interrupted('SIGINT ended the training', signal_number=signal.SIGINT)"


def start(log: Path, *, outlives: bool, end: str = "pass", **streams) -> subprocess.Popen:
    code = COMMAND.format(end=end, outlives=outlives)
    return subprocess.Popen([sys.executable, "-c", code, str(log)], cwd=PROJECT, stdin=subprocess.PIPE, **streams)


def end(process: subprocess.Popen) -> int:
    process.stdin.write(b"\n")
    process.stdin.close()
    return process.wait(timeout=30)


@pytest.mark.parametrize(
    ("last_line", "outlives", "code"),
    [
        ("pass", True, 0),
        (INTERRUPTED, True, 130),
        ("raise KeyboardInterrupt", True, 130),
        ("raise RunError('out of memory')", True, 1),
        ("pass", False, 141),
    ],
)
def test_a_closed_pipe_ends_a_report_quietly_and_a_training_not_at_all(tmp_path, last_line, outlives, code):
    reader, writer = os.pipe()
    with start(tmp_path / "log", outlives=outlives, end=last_line, stdout=writer, stderr=writer) as process:
        os.close(writer)
        assert os.read(reader, 5) == b"ready"
        os.close(reader)
        assert end(process) == code
    log = (tmp_path / "log").read_text()
    if outlives:
        assert [line.split("INFO")[1].strip() for line in log.splitlines() if "INFO" in line] == [
            "step 0", "step 1", "step 2"
        ]  # fmt: skip
        assert log.count(f"stderr cannot be written (Broken pipe): process {process.pid} continues") == 1


def test_an_interrupted_report_whose_reader_has_gone_ends_with_130(tmp_path):
    reader, writer = os.pipe()
    with start(tmp_path / "log", outlives=False, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        assert process.stderr.readline() == b"ready\n"
        os.close(reader)
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_a_broken_pipe_of_another_kind_is_an_error():
    code = "from utils.cli import run_command\ndef main(argv): raise BrokenPipeError('a worker')\nrun_command(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1 and "BrokenPipeError: a worker" in done.stderr


def test_a_closed_terminal_hangs_up_a_report_and_not_a_training(tmp_path):
    for outlives in (True, False):
        terminal, device = pty.openpty()
        log = tmp_path / str(outlives)
        with start(log, outlives=outlives, stdout=device, stderr=device, start_new_session=True) as process:
            os.close(device)
            assert os.read(terminal, 5) == b"ready"
            os.close(terminal)
            process.send_signal(signal.SIGHUP)  # as the shell does
            if outlives:
                assert end(process) == 0 and "step 2" in log.read_text()
                assert "stderr cannot be written (Input/output error)" in log.read_text()
            else:
                assert process.wait(timeout=30) == -signal.SIGHUP


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_command_without_standard_streams_runs_and_no_file_takes_their_place(tmp_path, closed):
    code = COMMAND.format(end="os.write(2, b'noise'); os.write(1, b'noise')", outlives=True)
    command = f'"$0" -c "$1" "$2" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, code, str(tmp_path / "log")],
        cwd=PROJECT,
        input=b"\n",
        capture_output=True,
    )
    log = (tmp_path / "log").read_text()
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert "step 2" in log and "noise" not in log


def test_a_full_disk_behind_the_output_does_not_end_a_training(tmp_path):
    with (
        Path("/dev/full").open("w") as full,
        start(tmp_path / "log", outlives=True, stdout=full, stderr=full) as process,
    ):
        assert end(process) == 0
    assert "stderr cannot be written (No space left on device)" in (tmp_path / "log").read_text()


def test_a_terminal_of_ascii_gets_the_whole_text_instead_of_a_traceback():
    code = (
        "import sys; from utils.cli import run_command; from utils.errors import RunError\n"
        "def main(argv):\n"
        "    print('one \\u2026'); print('B\\u00fcrstner', file=sys.stderr); raise RunError('\\u00b1')\n"
        "sys.exit(run_command(main))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "one \\u2026\n"
    assert done.stderr == "B\\xfcrstner\nerror: \\xb1\n"


def test_idle_threads_sleep_from_before_torch_is_imported():
    code = (
        "import os, sys, train, evaluate, predict, export, benchmark, compare, dashboard, reproduce\n"
        "from utils.cli import run_command; from utils.machine import SPIN_VARIABLES\n"
        "print('torch' in sys.modules)\n"
        "for name in SPIN_VARIABLES: os.environ.pop(name, None)\n"
        "run_command(lambda argv: print(os.environ['OMP_WAIT_POLICY']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["False", "PASSIVE"], done.stderr


ALLOCATIONS = """
import resource
from utils.machine import keep_freed_memory, release_freed_memory
def resident(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 50_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
kept = resident()
release_freed_memory()
print(kept - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux keeps freed memory")
@pytest.mark.parametrize(("variables", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_kept_until_it_is_released_unless_the_user_decides(variables, kept):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | variables
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATIONS], cwd=PROJECT, env=environment, capture_output=True, text=True
    )
    faults, released = map(float, done.stdout.split())
    pages = 50_000_000 / 4096
    assert (faults < pages / 20 and released > 45) if kept else (faults > pages * 0.9 and released < 5), done


@pytest.mark.parametrize("name", SPIN_VARIABLES)
def test_the_user_decides_how_long_idle_threads_spin(monkeypatch, name):
    for other in SPIN_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    set_thread_policy()
    assert {each: os.environ.get(each) for each in SPIN_VARIABLES} == dict.fromkeys(SPIN_VARIABLES) | {name: "1"}


@pytest.mark.slow
def test_a_real_training_piped_into_head_and_hung_up_trains_to_its_end(cars, tmp_path):
    settings = [
        "image_size=[32, 32]", "width_multiplier=0.2", "out_channels=32", "batch_size=8", "num_epochs=3",
        "num_workers=0", "trackers=[]", "accelerator=cpu", "cache_path=null", f"output_path={tmp_path}",
    ]  # fmt: skip
    command = [sys.executable, "train.py", "-d", str(cars), *set_options(settings)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        process.stdout.readline()
        process.stdout.close()
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=90) == 0
    folder = only_run(tmp_path)
    assert read_record(folder)["status"] == "completed" and len(read_rows(folder / "metrics.csv")) == 3
    log = (folder / "train.log").read_text()
    assert log.count("train loss") == 3 and log.count("stderr cannot be written (Broken pipe)") == 1
