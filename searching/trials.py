"""Trains the trials of a search: each in a process of its own, one on each device at a time."""

import logging
import os
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState

from reproduction.queue import POLL_SECONDS, failure_reason, start_process
from searching.costs import cost_of
from searching.space import describe, round_number
from searching.study import REASON, Claim, Search, latest, storage_errors
from training.signals import SignalHandler
from utils.cli import set_options
from utils.config import Config, local_overrides
from utils.config.yaml_source import yaml_text
from utils.errors import Interrupted, RunError
from utils.files import write_text
from utils.machine import PROJECT
from utils.progress import show_total, total_bar
from utils.runs.folder import LAST, METRICS, has_ended, read_record
from utils.runs.lock import is_held
from utils.runs.metrics import best, read_rows

MAX_FAILURES = 3  # in a row; then something is wrong with more than the settings
VISIBLE = "CUDA_VISIBLE_DEVICES"

Start = Callable[[Sequence[str], Path, Mapping[str, str]], subprocess.Popen]
Stages = Generator[list[str], int, None]  # yields arguments of Python, and receives the exit code

logger = logging.getLogger(__name__)


@dataclass
class Slot:
    """A device and the trial that it trains."""

    environment: dict[str, str]
    claim: Claim | None = None
    stages: Stages | None = None
    process: subprocess.Popen | None = None
    is_signaled: bool = False


def device_environments(config: Config) -> list[dict[str, str]]:
    """Returns what to add to the environment of a process for each device that may train; imports torch."""
    import torch

    from assembly.trainer import uses_cuda

    if not uses_cuda(config.accelerator) or torch.cuda.device_count() < 2:
        return [{}]
    count = torch.cuda.device_count()
    names = os.environ[VISIBLE].split(",")[:count] if os.environ.get(VISIBLE) else map(str, range(count))
    return [{VISIBLE: name} for name in names]


def run_trials(search: Search, environments: Sequence[dict[str, str]], *, start: Start = start_process) -> None:
    """Trains trials until the budget is spent and no process of this folder has any left.

    Args:
        search: The search.
        environments: Of `device_environments`; as many trials are trained at once.
        start: Starts a process.

    Raises:
        Interrupted: SIGINT or SIGTERM was received; the trainings have written their checkpoints.
        RunError: Several trials in a row failed, or the storage or the folder cannot be used.
    """
    with SignalHandler() as signals, storage_errors():
        signals.install()
        _Runner(search, environments, start, signals).run()


class _Runner:
    def __init__(
        self, search: Search, environments: Sequence[dict[str, str]], start: Start, signals: SignalHandler
    ) -> None:
        self.search = search
        self.slots = [Slot(environment) for environment in environments]
        self.start = start
        self.signals = signals
        self.failures: list[str] = []  # in a row
        self.bar = total_bar(unit=" %", total=100, done=self._done())

    def run(self) -> None:
        try:
            while True:
                for slot in self.slots:
                    self._advance(slot)
                busy = [slot.process for slot in self.slots if slot.process is not None]
                if not busy:
                    break
                try:
                    busy[0].wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    self._show()
            if self.signals.received:
                raise Interrupted(
                    "interrupted; the same command resumes the search", signal_number=self.signals.signal_number
                )
        finally:
            self.bar.close()
            for slot in self.slots:
                self._release(slot)

    def _advance(self, slot: Slot) -> None:
        """Gives `slot` its next process if the last one has ended."""
        code = None
        if slot.process is not None:
            if (code := slot.process.poll()) is None:
                if self.signals.received and not slot.is_signaled:
                    slot.process.send_signal(self.signals.signal_number)
                    slot.is_signaled = True
                return
            slot.process = None
        while not self.signals.received:
            if slot.claim is None:
                slot.claim, code = self.search.claim(), None
                if slot.claim is None:
                    return
                slot.stages = self._stages(slot.claim)
            try:
                arguments = slot.stages.send(code)
            except StopIteration:
                self._release(slot)
                continue
            if self.signals.received:
                return
            slot.process = self.start(arguments, self._file(slot.claim, "txt"), slot.environment)
            slot.is_signaled = False
            return

    def _release(self, slot: Slot) -> None:
        if slot.process is not None and slot.process.poll() is None:
            slot.process.terminate()
            slot.process.wait()
        if slot.claim is not None:
            slot.claim.lock.release()
        slot.claim = slot.stages = slot.process = None

    def _file(self, claim: Claim, suffix: str) -> Path:
        return self.search.queue / f"{self.search.space.name}-{claim.root}.{suffix}"

    def _stages(self, claim: Claim) -> Stages:
        """Trains a trial up to each rung and to its end, and records what became of it."""
        search, space, trial = self.search, self.search.space, claim.trial
        config = space.config(claim.values)
        stops = space.pruning.stops(config.num_epochs) if space.pruning else []
        for step, epochs in [*stops, (None, None)]:
            run = self._settled_run(claim)
            if run is None or not (has_ended(run) or (epochs is not None and _epochs(run) >= epochs)):
                logger.info(
                    "trial %d%s%s: %s", claim.root, " resumed" if run and (run / LAST).is_file() else "",
                    f" to epoch {epochs} of {config.num_epochs}" if epochs else "", describe(claim.values),
                )  # fmt: skip
                output = self._file(claim, "txt")
                output.unlink(missing_ok=True)
                code = yield self._arguments(claim, config, run, epochs)
                run = search.run_of(claim.root)
                if code or run is None:
                    self._fail(claim, run, f"{failure_reason(code, output)}; see {output}")
                    return
            if epochs is None or has_ended(run):
                break
            found = best(read_rows(run / METRICS)[:epochs], space.metric)
            if step not in claim.reported:
                trial.report(float("nan") if found is None else found[0], step)
            if trial.should_prune() and step > claim.resumed_at:
                self._describe(claim, run)
                search.study.tell(trial, state=TrialState.PRUNED)
                logger.info("trial %d pruned after %d epochs, %s", claim.root, epochs, _figure(space.metric, found))
                return
        found = best(read_rows(run / METRICS), space.metric)
        if found is None:
            self._fail(claim, run, f"{space.metric} was NaN or infinite in every epoch")
            return
        self._describe(claim, run)
        search.study.tell(trial, [found[0], *(cost_of(run, cost) for cost in space.metrics[1:])])
        self.failures.clear()
        logger.info("trial %d finished, %s", claim.root, _figure(space.metric, found))

    def _settled_run(self, claim: Claim) -> Path | None:
        """Returns the run of a trial when no process trains it any more: a training may outlive a search that was killed."""
        run = self.search.run_of(claim.root)
        while run is not None and is_held(run) and not self.signals.received:
            time.sleep(POLL_SECONDS)
        return run

    def _arguments(self, claim: Claim, config: Config, run: Path | None, epochs: int | None) -> list[str]:
        """Returns the arguments of Python that start a trial, or that resume its run."""
        stop = [] if epochs is None else ["--stop-after", str(epochs)]
        if run is not None and (run / LAST).is_file():
            changes = set_options(local_overrides(self.search.space.overrides))
            return [str(PROJECT / "train.py"), "--resume", str(run), *changes, *stop]
        values = config.plain() | {
            "output_path": str(self.search.folder),
            "description": f"trial {claim.root}: {describe(claim.values)}",
            "tags": [*config.tags, self.search.tag, f"trial {claim.root}"],
        }
        file = self._file(claim, "yml")
        write_text(file, yaml_text(values))
        return [str(PROJECT / "train.py"), "--config", str(file), *stop]

    def _describe(self, claim: Claim, run: Path | None) -> None:
        """Records in the trial what its run says, so that other machines have it."""
        record = {} if run is None else read_record(run)
        rows = [] if run is None else read_rows(run / METRICS)
        facts = {
            "run": None if run is None else run.name,
            "epochs": len(rows),
            "seconds": record.get("seconds", 0.0),
            "num_params": record.get("parameters", {}).get("num_params"),
            "valid_images": record.get("valid_photos"),
            "test_images": record.get("test_photos"),
            "accuracy": (best(rows, self.search.space.accuracy) or [None])[0],
        }
        for name, value in facts.items():
            claim.trial.set_user_attr(name, value)

    def _fail(self, claim: Claim, run: Path | None, reason: str) -> None:
        self._describe(claim, run)
        claim.trial.set_user_attr(REASON, reason)
        self.search.study.tell(claim.trial, state=TrialState.FAIL)
        logger.error("trial %d failed: %s", claim.root, reason)
        self.failures.append(reason)
        if len(self.failures) == MAX_FAILURES:
            raise RunError(f"{MAX_FAILURES} trials in a row failed, the last one: {reason}")

    def _done(self) -> float:
        """Returns the spent share of the budget in percent, of its limits the one nearest to its end."""
        space, states = self.search.space, [trial.state for trial in latest(self.search.trials())]
        shares = []
        if total := len(space.points or ()) or space.trials:
            running = sum(self._share(slot.claim) for slot in self.slots if slot.claim)
            shares.append((sum(state.is_finished() for state in states) + running) / total)
        if space.hours:
            shares.append(self.search.hours() / space.hours)
        return min(100.0, 100 * max(shares))

    def _share(self, claim: Claim) -> float:
        run = self.search.run_of(claim.root)
        return 0.0 if run is None else _epochs(run) / self.search.space.config(claim.values).num_epochs

    def _show(self) -> None:
        trials = latest(self.search.trials())
        texts = [f"{sum(trial.state.is_finished() for trial in trials)} trials finished"]
        for slot in self.slots:
            if slot.claim is not None and (run := self.search.run_of(slot.claim.root)) is not None:
                texts.append(f"trial {slot.claim.root} epoch {_epochs(run)}")
        show_total(self.bar, ", ".join(texts), max(self.bar.n, self._done()))


def _epochs(run: Path) -> int:
    return len(read_rows(run / METRICS))


def _figure(metric: str, found: tuple[float, int] | None) -> str:
    if found is None:
        return f"{metric} NaN or infinite"
    return f"{metric} {100 * found[0]:.2f} %" if metric.endswith("acc") else f"{metric} {round_number(found[0])}"
