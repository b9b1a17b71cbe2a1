"""Kills trainings at random moments, resumes them, and compares each with an undisturbed one.

    python -m measurements.proofs.killed_runs [--kills 100] [--seed 0] [--output FILE]

Each training is `python train.py` in an empty folder with an archive of drawn cars: it extracts, builds its cache, trains,
writes checkpoints and logs to MLflow. SIGKILL hits its whole process group or, in every fourth case, the training process
alone. It is resumed with `--resume last`, or started again where there is no checkpoint yet; some are killed again. In the
end every byte of metrics.csv, every tensor and number of last.ckpt and best.ckpt, the run in MLflow and the list of all
files are compared.

The kinds of work take turns, so that short ones are hit as often as long ones. A training's work is seen from its files;
each kill waits for a random occurrence of the chosen work, then for a random part of its usual duration. Needs Linux.
"""

import argparse
import datetime
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datamodules.demo import write_demo_data
from measurements.measuring import at_least, build_parser, command
from measurements.proofs.run_differences import differences, unexpected_files
from utils.cli import run_command, set_options
from utils.files import write_text
from utils.machine import PROJECT, available_cores
from utils.progress import progress_bar
from utils.runs.folder import LAST, METRICS
from utils.runs.metrics import read_rows
from utils.runs.provenance import versions

NUM_EPOCHS = 4
IMAGES = {"training_photos": 12, "validation_photos": 5}  # of each of 15 models
OTHER_IMAGES = 1000  # without annotations: they only prolong the extraction
MAX_SECONDS = 300.0  # of one training
POLL_SECONDS = 0.0005
KILLED_AGAIN = 0.15  # share of the trainings
KILLED_ALONE = 0.25  # share of the kills that spare the workers
PHASES = (
    "start", "extraction", "creating the store", "building the cache", "training", "checkpointing", "logging to MLflow",
    "records", "end",
)  # fmt: skip


@dataclass
class Kill:
    """What a training was doing when it was killed, and how it continued."""

    phase: str
    seconds: float
    epochs: int
    alone: bool
    partial_files: list[str]
    continued: str = ""


@dataclass
class Case:
    """One training, its kills, and the differences in the end."""

    number: int
    changes: list[str]
    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


class Training:
    """A running `train.py`, the leader of its process group."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self.started = time.monotonic()
        with log.open("a") as file:
            self.process = subprocess.Popen(
                command("train.py", *words), cwd=PROJECT, stdout=file, stderr=file, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def freeze(self) -> None:
        """Stops all processes, so that their files can be inspected."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        while not self.has_ended() and stat.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.0001)

    def kill(self, *, alone: bool = False) -> None:
        """Kills the group, or the training process alone, as the system does when it is out of memory."""
        if alone:
            self.process.kill()
            os.killpg(self.process.pid, signal.SIGCONT)  # the workers must notice it themselves
        else:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def write_archive(folder: Path) -> None:
    """Writes drawn cars as car_ims.tgz and cars_annos.mat."""
    drawn = folder.parent / "drawn"
    write_demo_data(drawn, **IMAGES)
    images = sorted(drawn.glob("car_ims/*.jpg"))
    folder.mkdir()
    (drawn / "cars_annos.mat").rename(folder / "cars_annos.mat")
    with tarfile.open(folder / "car_ims.tgz", "w:gz", compresslevel=1) as tar:
        for image in images:
            tar.add(image, f"car_ims/{image.name}")
        for number in range(OTHER_IMAGES):
            tar.add(images[number % len(images)], f"car_ims/other_{number:06d}.jpg")


def training_arguments(archives: Path, work: Path, changes: Sequence[str] = ()) -> list[str]:
    """Returns the arguments of a training in `work`."""
    return set_options(
        ["image_size=[32, 32]", "batch_size=16", f"num_epochs={NUM_EPOCHS}", "num_workers=0", "width_multiplier=0.35",
         "optimizer_params.lr=0.002", "lr_scheduler_params.milestones=[1, 3]", "accelerator=cpu", "trackers=[mlflow]",
         f"raw_data_path={archives}", f"data_path={work / 'data'}", f"output_path={work / 'output'}",
         f"cache_path={work / 'cache'}", *changes]
    )  # fmt: skip


def find_phase(work: Path) -> str:
    """Returns what the training in `work` is doing, from its files."""
    if any(work.glob("data/.car_ims.*")):
        return "extraction"
    if any(work.glob("cache/.*.partial")):
        return "building the cache"
    runs = sorted(work.glob("output/ghost_*"))
    if not runs:
        return "start"
    if any(runs[-1].glob("checkpoints/.*.partial")):
        return "checkpointing"
    if any(work.glob("output/.mlflow.db.*")):
        return "creating the store"
    if any(work.glob("output/mlflow.db-journal")):
        return "logging to MLflow"
    if any(runs[-1].glob(".*.partial")):
        return "records"
    return "end" if len(read_rows(runs[-1] / METRICS)) == NUM_EPOCHS else "training"


def watch(training: Training, work: Path) -> dict[str, list[float]]:
    """Returns the duration of each occurrence of each phase, in seconds."""
    durations: dict[str, list[float]] = {}
    before, since = "", 0.0
    while not training.has_ended():
        phase, now = find_phase(work), training.seconds
        if phase != before:
            if before:
                durations.setdefault(before, []).append(now - since)
            before, since = phase, now
        time.sleep(POLL_SECONDS)
    durations.setdefault(before, []).append(training.seconds - since)
    return durations


def wait_for_moment(
    training: Training, work: Path, phase: str, durations: list[float], generator: random.Random
) -> bool:
    """Waits for a random moment of `phase`; returns whether the training is still running."""
    (turn,) = generator.choices(range(len(durations)), weights=durations)
    moment = generator.uniform(0, durations[turn])
    seen, before = -1, ""
    while not training.has_ended():
        found = find_phase(work)
        seen += found == phase != before
        before = found
        if seen >= turn and found == phase:
            limit = time.monotonic() + moment
            while time.monotonic() < limit:
                pass  # sleeping would miss the shortest phases
            if find_phase(work) == phase:
                return not training.has_ended()
            turn = seen + 1  # it was shorter this time: wait for the next occurrence
            moment = generator.uniform(0, moment)
        time.sleep(POLL_SECONDS)
    return False


def kill(training: Training, work: Path, generator: random.Random) -> Kill | None:
    """Kills a training; returns None if it has just ended."""
    training.freeze()
    if training.has_ended():
        return None
    runs = sorted(work.glob("output/ghost_*"))
    partial_files = sorted(path.name for path in work.rglob("*") if _is_partial(path))
    epochs = len(read_rows(runs[-1] / METRICS)) if runs else 0
    alone = generator.random() < KILLED_ALONE
    killed = Kill(find_phase(work), round(training.seconds, 3), epochs, alone, partial_files)
    training.kill(alone=alone)
    return killed


def _is_partial(path: Path) -> bool:
    return ".partial" in path.name or (path.name.endswith(("-journal", ".lock")) and path.name != "mlflow.db.lock")


def run_case(
    case: Case, archives: Path, undisturbed: Path, work: Path, durations: dict[str, list[float]],
    generator: random.Random, max_kills: int,
) -> None:  # fmt: skip
    """Trains in `work`, kills once or twice, continues to the end, and records the differences."""
    log, words = work / "log.txt", training_arguments(archives, work, case.changes)
    kills = 2 if max_kills > 1 and generator.random() < KILLED_AGAIN else 1
    while len(case.kills) < kills:
        phase = generator.choice(PHASES) if case.kills else PHASES[case.number % len(PHASES)]
        training = Training(words, log)
        running = wait_for_moment(training, work, phase, durations.get(phase, [0.1]), generator)
        killed = kill(training, work, generator) if running else None
        if killed is None and not case.kills:
            return  # it ended before its moment came; another case takes its place
        if killed is None:
            break
        case.kills.append(killed)
        resumable = any(work.glob(f"output/*/{LAST}"))
        killed.continued = "resumed" if resumable else "from the start"
        words = ["--resume", "last", "--set", f"output_path={work / 'output'}"] if resumable else words
    if training.process.returncode < 0:
        training = Training(words, log)
        try:
            code = training.process.wait(MAX_SECONDS)
        except subprocess.TimeoutExpired:
            training.kill()
            code = "none: it hung"
        if code:
            case.differences.append(f"it was continued and ended with exit code {code}")
    lines = log.read_text(encoding="utf-8").splitlines()
    log.unlink()
    case.differences += [line for line in lines if line.startswith(("warning:", "error:", "Traceback"))]
    finished = sorted(work.glob("output/ghost_*"))[-1]
    try:
        case.differences += differences(finished, next(undisturbed.glob("output/ghost_*")))
        case.differences += unexpected_files(work, undisturbed)
    except Exception as error:  # whatever a damaged file raises is a difference
        case.differences.append(f"{type(error).__name__}: {error}")


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    parser = build_parser(__doc__, data=False, overrides=False)
    parser.add_argument("--kills", type=at_least(1), default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    generator, began = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="killed_runs_") as name:
        root = Path(name)
        archives, undisturbed, log = root / "archives", root / "undisturbed", root / "log.txt"
        write_archive(archives)
        undisturbed.mkdir()
        durations = watch(Training(training_arguments(archives, undisturbed), log), undisturbed)
        cases = _run_cases(options.kills, archives, undisturbed, root, durations, generator)
    result = summarize(cases, durations, options, time.monotonic() - began)
    if options.output:
        write_text(options.output, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"{result['equal']} of {result['trainings']} trainings are equal after {result['kills']} kills")
    for phase, number in result["kills_by_phase"].items():
        print(f"  {phase:<20}{number:>4}")
    for case in cases:
        for difference in case.differences:
            print(f"  training {case.number}, killed at {case.kills[0].phase}: {difference}")
    return result


def _run_cases(
    kills: int, archives: Path, undisturbed: Path, root: Path, durations: dict[str, list[float]],
    generator: random.Random,
) -> list[Case]:  # fmt: skip
    cases: list[Case] = []
    done = number = 0
    with progress_bar(description="killing", unit=" kills", total=kills) as bar:
        while done < kills and number < 5 * kills + 20:
            interval, workers = generator.choice(["null", "0.005"]), generator.choice([0, 2])
            case = Case(number, [f"num_workers={workers}", f"checkpoint_interval={interval}"])
            with tempfile.TemporaryDirectory(dir=root) as work:
                run_case(case, archives, undisturbed, Path(work), durations, generator, kills - done)
            number += 1
            if case.kills:
                cases.append(case)
                done += len(case.kills)
                bar.update(len(case.kills))
    return cases


def summarize(
    cases: list[Case], durations: dict[str, list[float]], options: argparse.Namespace, seconds: float
) -> dict[str, object]:
    kills = [kill for case in cases for kill in case.kills]
    return {
        "conditions": {
            "date": str(datetime.date.today()), "seed": options.seed, "cores": available_cores(), "versions": versions(),
            "epochs": NUM_EPOCHS, "images": IMAGES, "models": 15, "minutes": round(seconds / 60, 1),
        },
        "kills": len(kills),
        "trainings": len(cases),
        "equal": sum(not case.differences for case in cases),
        "kills_by_phase": {phase: Counter(kill.phase for kill in kills)[phase] for phase in PHASES},
        "continued": Counter(kill.continued for kill in kills),
        "killed_with_partial_files": sum(bool(kill.partial_files) for kill in kills),
        "seconds_of_phases": {phase: [round(each, 4) for each in times] for phase, times in durations.items()},
        "cases": [asdict(case) for case in cases],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command(main))
