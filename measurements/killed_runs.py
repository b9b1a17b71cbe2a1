"""Kills trainings at random moments, lets each go on, and compares with one that nobody disturbed.

    python -m measurements.killed_runs [--kills 100] [--seed 0] [--output measurements/killed_runs.json]

Each training starts in an empty folder from an archive of drawn cars: it extracts, builds its cache, trains, writes
checkpoints and logs to MLflow. It is killed by SIGKILL, its whole process group or, in every fourth case, the training
process alone, and goes on as a person would have it: by `--resume last`, or from the start where there is no checkpoint yet.
Some are killed again on the way. Then every byte of metrics.csv, every tensor and number of last.ckpt and best.ckpt
(weights, optimizer, scheduler, early stopping, progress), the run in MLflow and the list of all files are compared.

The moments: the kinds of work take turns, so that the short ones are met as often as the long ones. What a training is at
is seen from the files that lie there; each kill waits for a random one of the times that this kind of work comes, and then
for a random part of its usual duration. What it was at when it was killed is noted with its processes stopped.

What is real and what is not: see `forked_training`. The undisturbed training is `python train.py` itself.
"""

import argparse
import datetime
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from utils.machine import PROJECT

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported: threads do not survive a fork

from measurements.arguments import at_least, report
from measurements.forked_training import POLL_SECONDS, Training, preload, write_archive
from measurements.run_differences import differences, epochs_of, strays
from utils.cli import run_command
from utils.files import write_text
from utils.machine import available_cores, versions
from utils.progress import progress_bar
from utils.runs.folder import LAST

NUM_EPOCHS = 4
PHOTOS = {"training_photos": 12, "validation_photos": 5, "other_photos": 1000}  # the first two of each of 15 models
LONGEST = 120.0  # seconds of one training
AGAIN = 0.15  # part of the trainings that are killed again after they went on
ALONE = 0.25  # part of the kills that hit the training process and not its workers
PHASES = (
    "start", "extraction", "making the store", "cache building", "training", "checkpointing", "tracker writing", "records",
    "end",
)  # fmt: skip


@dataclass
class Kill:
    """What a training was at when it was killed, and how it went on."""

    phase: str
    seconds: float
    epochs: int
    alone: bool
    half_written: list[str]
    went_on: str = ""


@dataclass
class Case:
    """One training, its kills, and what differs in the end."""

    number: int
    settings: list[str]
    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def arguments(archives: Path, work: Path, changes: Sequence[str] = ()) -> list[str]:
    """Returns the command line of a training in `work`."""
    settings = [
        "image_size=[32, 32]", "batch_size=16", f"num_epochs={NUM_EPOCHS}", "num_workers=0", "width_multiplier=0.35",
        "optimizer_params.lr=0.002", "lr_scheduler_params.milestones=[1, 3]", "accelerator=cpu", "trackers=[mlflow]",
        f"raw_data_path={archives}", f"data_path={work / 'data'}", f"output_path={work / 'output'}",
        f"cache_path={work / 'cache'}", *changes,
    ]  # fmt: skip
    return [word for setting in settings for word in ("--set", setting)]


def phase_of(work: Path) -> str:
    """Tells what the training in `work` is at from the files that lie there."""
    if any(work.glob("data/.car_ims.*")):
        return "extraction"
    if any(work.glob("cache/.*.partial")):
        return "cache building"
    runs = sorted(work.glob("output/ghost_*"))
    if not runs:
        return "start"
    if any(runs[-1].glob("checkpoints/.*.partial")):
        return "checkpointing"
    if any(work.glob("output/.mlflow.db.*")):
        return "making the store"
    if any(work.glob("output/mlflow.db-journal")):
        return "tracker writing"
    if any(runs[-1].glob(".*.partial")):
        return "records"
    return "end" if epochs_of(runs[-1]) == NUM_EPOCHS else "training"


def watch(training: Training, work: Path) -> dict[str, list[float]]:
    """Returns, for each kind of work, how long it lasted each time that it came."""
    episodes: dict[str, list[float]] = {}
    before, since = "", 0.0
    while not training.has_ended():
        phase, now = phase_of(work), training.seconds
        if phase != before:
            if before:
                episodes.setdefault(before, []).append(now - since)
            before, since = phase, now
        time.sleep(POLL_SECONDS)
    episodes.setdefault(before, []).append(training.seconds - since)
    return episodes


def wait_for_moment(
    training: Training, work: Path, phase: str, episodes: list[float], generator: random.Random
) -> bool:
    """Waits for a random moment of `phase`; returns whether the training is still there."""
    (turn,) = generator.choices(range(len(episodes)), weights=episodes)
    moment = generator.uniform(0, episodes[turn])
    seen, before = -1, ""
    while not training.has_ended():
        found = phase_of(work)
        seen += found == phase != before
        before = found
        if seen >= turn and found == phase:
            limit = time.monotonic() + moment
            while time.monotonic() < limit:
                pass  # to sleep would miss the shortest
            if phase_of(work) == phase:
                return not training.has_ended()
            turn = seen + 1  # it was shorter this time: the next one
            moment = generator.uniform(0, moment)
        time.sleep(POLL_SECONDS)
    return False


def kill(training: Training, work: Path, generator: random.Random) -> Kill | None:
    """Kills a training that is under way; None where it has just ended."""
    training.freeze()
    if training.exit_code is not None:
        return None
    runs = sorted(work.glob("output/ghost_*"))
    phase, partial = phase_of(work), sorted(path.name for path in work.rglob("*") if _is_half(path))
    noted = Kill(
        phase, round(training.seconds, 3), epochs_of(runs[-1]) if runs else 0, generator.random() < ALONE, partial
    )
    training.kill(alone=noted.alone)
    return noted


def _is_half(path: Path) -> bool:
    return ".partial" in path.name or (path.name.endswith(("-journal", ".lock")) and path.name != "mlflow.db.lock")


def run_case(
    case: Case, turn: int, archives: Path, undisturbed: Path, work: Path, episodes: dict[str, list[float]],
    generator: random.Random, most: int,
) -> None:  # fmt: skip
    """Trains in `work`, kills once or twice, lets it go on to its end, and notes what differs."""
    words, again = arguments(archives, work, case.settings), most > 1 and generator.random() < AGAIN
    while len(case.kills) < 1 + again:
        phase = PHASES[turn % len(PHASES)] if not case.kills else generator.choice(PHASES)
        training = Training(words, work / "said.txt")
        happened = wait_for_moment(training, work, phase, episodes.get(phase, [0.1]), generator)
        killed = kill(training, work, generator) if happened else None
        if killed is None and not case.kills:
            return  # it ended before its moment came: another one takes its place
        if killed is None:
            break
        case.kills.append(killed)
        resumed = any(work.glob(f"output/*/{LAST}"))
        killed.went_on = "resumed" if resumed else "from the start"
        words = ["--resume", "last", "--set", f"output_path={work / 'output'}"] if resumed else words
    if training.exit_code is None or training.exit_code < 0:
        code = Training(words, work / "said.txt").wait(LONGEST)
        if code:
            case.differences.append(f"it went on and ended with exit code {code}")
    said = (work / "said.txt").read_text(encoding="utf-8")
    (work / "said.txt").unlink()
    case.differences += [line for line in said.splitlines() if line.startswith(("warning:", "error:", "Traceback"))]
    finished = sorted(work.glob("output/ghost_*"))[-1]
    try:
        case.differences += [
            *differences(finished, next(undisturbed.glob("output/ghost_*"))),
            *strays(work, undisturbed),
        ]
    except Exception as error:  # whatever a damaged file raises is a difference
        case.differences.append(f"{type(error).__name__}: {error}")


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=at_least(1), default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=report, default="measurements/killed_runs.json")
    options = parser.parse_args(argv)
    generator, began = random.Random(options.seed), time.monotonic()
    root = Path(
        tempfile.mkdtemp(prefix="killed_runs_")
    )  # a TemporaryDirectory would be removed by every fork that ends
    try:
        archives, undisturbed, first = root / "archives", root / "undisturbed", root / "watched"
        write_archive(archives, **PHOTOS)
        subprocess.run(
            [sys.executable, "train.py", *arguments(archives, undisturbed)],
            cwd=PROJECT, check=True, capture_output=True, timeout=LONGEST,
        )  # fmt: skip
        preload(root / "preloaded")
        first.mkdir()
        episodes = watch(Training(arguments(archives, first), root / "watched.txt"), first)
        cases = _kill_all(options.kills, archives, undisturbed, root, episodes, generator)
    finally:
        shutil.rmtree(root)
    result = summary(cases, episodes, options, time.monotonic() - began)
    write_text(options.output, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"{result['equal']} of {result['trainings']} trainings equal after {result['kills']} kills: {options.output}")
    for phase, number in result["kills_by_phase"].items():
        print(f"  {phase:<16}{number:>4}")
    for case in cases:
        for difference in case.differences:
            print(f"  training {case.number}, killed at {case.kills[0].phase}: {difference}")
    return result


def _kill_all(
    kills: int,
    archives: Path,
    undisturbed: Path,
    root: Path,
    episodes: dict[str, list[float]],
    generator: random.Random,
) -> list[Case]:
    cases: list[Case] = []
    done = turn = 0
    with progress_bar(description="killing", unit=" kills", total=kills) as bar:
        while done < kills and turn < 5 * kills + 20:
            interval, workers = generator.choice(["null", "0.005"]), generator.choice([0, 2])
            case = Case(turn, [f"num_workers={workers}", f"checkpoint_interval={interval}"])
            work = root / f"case_{turn}"
            work.mkdir()
            run_case(case, turn, archives, undisturbed, work, episodes, generator, kills - done)
            turn += 1
            if case.kills:
                cases.append(case)
                done += len(case.kills)
                bar.update(len(case.kills))
            shutil.rmtree(work)
    return cases


def summary(
    cases: list[Case], episodes: dict[str, list[float]], options: argparse.Namespace, seconds: float
) -> dict[str, object]:
    kills = [kill for case in cases for kill in case.kills]
    return {
        "conditions": {
            "date": str(datetime.date.today()), "seed": options.seed, "cores": available_cores(), "versions": versions(),
            "epochs": NUM_EPOCHS, "photos": PHOTOS, "models": 15, "minutes": round(seconds / 60, 1),
        },
        "kills": len(kills),
        "trainings": len(cases),
        "equal": sum(not case.differences for case in cases),
        "kills_by_phase": {phase: Counter(kill.phase for kill in kills)[phase] for phase in PHASES},
        "went_on": Counter(kill.went_on for kill in kills),
        "killed_with_half_written_files": sum(bool(kill.half_written) for kill in kills),
        "seconds_of_phases": {phase: [round(each, 4) for each in times] for phase, times in episodes.items()},
        "cases": [asdict(case) for case in cases],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command(main))
