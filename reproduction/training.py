"""Trains one job in a process of its own, so that neither its memory nor its crash reaches the next one."""

import json
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from reproduction.batch_means import mean_of_batch_means
from reproduction.jobs import Job, RunIndex
from utils.cli import run_command
from utils.config import CONFIG_FILE
from utils.files import write_text
from utils.machine import available_cores, cpu_name

FACTS = "reproduction.json"  # in a run's folder: what is known only where it was trained
ERROR = "error: "  # before what utils.cli says of an error


def start_training(job: Job, output: Path) -> BaseProcess:
    """Starts the training of `job`, or lets it go on; returns its process, whose messages go to the file `output`."""
    arguments = job.arguments(RunIndex(job.folder).broken_off(job.key))
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(job, arguments, output))
    process.start()
    return process


def _work(job: Job, arguments: list[str], output: Path) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C goes to the starting process alone, which passes it on
    with output.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = [str(CONFIG_FILE.parent / "train.py"), *arguments]  # with several devices Lightning starts it again
    import train

    environment = dict(os.environ)
    code = run_command(train.main, outlives_terminal=True)
    if code == 0:
        _leave_group(environment)
        _note_facts(RunIndex(job.folder).runs()[job.key][0])
    sys.exit(code)


def _end_with_parent() -> None:
    """Ends this process as a signal would, with a checkpoint, when the one that started it is gone, however it ended."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_group(environment: dict[str, str]) -> None:
    """Takes back what a training on several devices left behind: the others are gone, and must not be waited for."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(environment)


def _note_facts(run: Path) -> None:
    """Writes down the device, and the accuracy of the best checkpoint both over images and as a mean of batch means."""
    from deployment.evaluation.evaluation import evaluate, load_split
    from deployment.trained import load_trained

    trained = load_trained(str(run))
    images, splits = load_split(trained, None, "valid")
    evaluation = evaluate(trained, images, splits)
    correct = (evaluation.ranking[:, 0] == evaluation.labels).tolist()
    facts: dict[str, Any] = {
        "device": _device_name(evaluation.device),
        "checkpoint_acc": evaluation.metrics["valid_acc"],
        "checkpoint_acc_over_batches": mean_of_batch_means(correct, trained.config.batch_size),
        "batch_size": trained.config.batch_size,
    }
    write_text(run / FACTS, json.dumps(facts, indent=2) + "\n")


def read_facts(run: Path) -> dict[str, Any]:
    """Reads what `start_training` noted beside the run's own record; nothing for a run that did not get so far."""
    try:
        return json.loads((run / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def reason(exit_code: int | None, output: Path) -> str:
    """Returns in one line why a training failed, whose messages are in the file `output`."""
    if exit_code is not None and exit_code < 0:
        return f"ended by {signal.Signals(-exit_code).name}" + (
            ", perhaps for want of memory" if exit_code == -9 else ""
        )
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines() if output.exists() else []
    said = [line for line in lines if line.strip()]
    errors = [line.removeprefix(ERROR) for line in said if line.startswith(ERROR)]
    return (errors or said or [f"exit code {exit_code}"])[-1]


def _device_name(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    if device != "cpu":
        return device
    return f"{cpu_name()}, {available_cores()} cores"
