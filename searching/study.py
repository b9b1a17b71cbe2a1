"""A search as a study of Optuna: which trial is next, and what became of each.

Optuna draws the settings, decides what is pruned, and stores everything: https://optuna.readthedocs.io. It leaves resuming to
its caller. An interrupted trial resumes under its own number. A pruned trial that later belongs to the best of its rung is
promoted: a new trial of Optuna with the same settings resumes its run. This happens once no new settings are drawn any more,
so that the sampler meets each setting once.
"""

import math
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from reproduction.planning import digest
from searching.space import Space
from utils.errors import ConfigError, RunError
from utils.files import make_folder, write_text
from utils.runs.folder import LAST, RECORD, has_ended, read_record
from utils.runs.lock import acquire, try_lock

STORE = "trials.db"
MAX_RACES = 2
BUSY_SECONDS = 60  # the longest to wait for another process that writes to SQLite
UNCLAIMED_SECONDS = 60  # after which a trial that no process claimed belongs to a process that was killed
# User attributes of a trial.
PLACE = "place"  # the folder of its run
ROOT = "resumes"  # number of the pruned trial whose run this one resumes
SURPLUS = "surplus"  # another machine had drawn the last trial of the budget
REASON = "reason"  # why it failed
DIGEST = "digest"  # user attribute of a study


class SeededByTrial(BaseSampler):
    """A sampler of Optuna whose random numbers depend on the trial's number, so that a resumed search draws the same ones."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind = kind
        self.seed = seed
        self.sampler: BaseSampler = RandomSampler()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        seed = int(digest([self.seed, trial.number]), 16)
        self.sampler = TPESampler(seed=seed) if self.kind == "tpe" else RandomSampler(seed=seed)
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)


@dataclass
class Claim:
    """A trial that this process trains, for as long as it holds the lock.

    Attributes:
        values: The values of the axes.
        resumed_at: The rung's step at which a promoted trial had been pruned, else 0.
        reported: The rungs' steps that it has reported already; not empty after a kill.
    """

    trial: Trial
    values: dict[str, Any]
    lock: FileLock
    root: int
    resumed_at: int
    reported: set[int]


class Search:
    """The study of a space in the folder of its runs.

    Args:
        space: What to try.
        folder: Where the runs are.
        data: Digest of the data set.
        storage: URL of a storage of Optuna; None: SQLite in `folder`.

    Raises:
        ConfigError: The study was made with another space.
        RunError: The storage cannot be used.
    """

    def __init__(self, space: Space, folder: Path, *, data: str, storage: str | None) -> None:
        self.space = space
        self.folder = folder
        self.queue = make_folder(folder / "queue")
        self.storage = storage
        self.tags: dict[Path, set[str]] = {}  # of each run
        self.lock = FileLock(self.queue / "search.lock")  # one process of this folder at a time chooses its next trial
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self._alone(), storage_errors(), warnings.catch_warnings(action="ignore"):
            self.place = self._place()
            self.study = self._open_or_retry()
            self._check(data)
            for point in space.points or ():
                self.study.enqueue_trial(point, skip_if_exists=True)

    @property
    def tag(self) -> str:
        """The tag of all runs of this search."""
        return f"search {self.space.name} {self.study.user_attrs[DIGEST]}"

    def claim(self) -> Claim | None:
        """Returns the next trial to train here, or None if there is none at present."""
        with self._alone(), storage_errors():
            return self._abandoned() or self._next()

    def has(self, name: str) -> bool:
        """Returns whether the storage has a study of this name."""
        return name in optuna.study.get_all_study_names(self.study._storage)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False, states=states or None)
            if SURPLUS not in trial.user_attrs
        ]

    def run_of(self, root: int) -> Path | None:
        """Returns the folder of the run of trial `root`: of several, a finished one or the one with the newest checkpoint."""
        for path in self.folder.glob(f"*/{RECORD}"):
            if path.parent not in self.tags:
                self.tags[path.parent] = {*read_record(path.parent).get("tags", [])}
        runs = [run for run, tags in self.tags.items() if {self.tag, f"trial {root}"} <= tags]

        def age(run: Path) -> tuple[bool, float]:
            return has_ended(run), (run / LAST).stat().st_mtime if (run / LAST).is_file() else 0.0

        return max(runs, key=age, default=None)

    def hours(self) -> float:
        """Returns the hours of training of all trials that are not running."""
        ended = (trial for trial in self.trials() if "seconds" in trial.user_attrs)
        return sum({root_of(trial): trial.user_attrs["seconds"] for trial in ended}.values()) / 3600

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits for other processes of this folder that choose a trial."""
        acquire(self.lock)
        try:
            yield
        finally:
            self.lock.release()

    def _place(self) -> str:
        path = self.queue / "place.txt"
        if not path.exists():
            write_text(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")

    def _open_or_retry(self) -> Study:
        for _ in range(MAX_RACES):
            try:
                return self._open()
            except (ImportError, ArgumentError) as error:
                raise ConfigError(f"--storage: {str(error).splitlines()[0]}") from error
            except (IntegrityError, OperationalError, ProgrammingError):  # another machine creates the tables
                time.sleep(1)
        return self._open()

    def _open(self) -> Study:
        if self.storage is None:
            url = f"sqlite:///{self.folder.resolve() / STORE}"
            storage: Any = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}})
        else:
            storage = self.storage
        pruning = self.space.pruning
        return optuna.create_study(
            storage=storage,
            study_name=self.space.name,
            load_if_exists=True,
            directions=self.space.directions,
            sampler=SeededByTrial(self.space.sampler, self.space.seed),
            pruner=SuccessiveHalvingPruner(min_resource=1, reduction_factor=pruning.factor) if pruning else NopPruner(),
        )

    def _check(self, data: str) -> None:
        own = digest([self.space.identity, data])
        known = self.study.user_attrs.get(DIGEST)
        if known is None:
            self.study.set_user_attr(DIGEST, own)
        elif known != own:
            raise ConfigError(
                f"{self.space.file}: {self.folder} has a search of this name with another base, space, metric or data set; "
                "give this one another name"
            )

    def _lock_of(self, number: int) -> FileLock | None:
        """Returns the acquired lock of a trial, or None if another process has it."""
        return try_lock(self.queue / f"{self.space.name}-{number}.lock")

    def count_elsewhere(self) -> int:
        """Returns the number of trials that other processes are training; interrupted ones are none."""
        return sum(self._is_held(trial) for trial in self.trials(TrialState.RUNNING))

    def _is_held(self, trial: FrozenTrial) -> bool:
        if trial.user_attrs.get(PLACE) not in (None, self.place):
            return True  # on another machine, whose locks are not seen here
        if (lock := self._lock_of(trial.number)) is None:
            return True
        lock.release()
        return False

    def _abandoned(self) -> Claim | None:
        """Takes up a trial whose process was killed."""
        for trial in self.trials(TrialState.RUNNING):
            place, age = trial.user_attrs.get(PLACE), (datetime.now() - trial.datetime_start).total_seconds()
            is_unclaimed = place is None and (self.storage is None or age > UNCLAIMED_SECONDS)
            if place != self.place and not is_unclaimed:
                continue
            if (lock := self._lock_of(trial.number)) is None:
                continue
            if trial.number in {each.number for each in self.trials(TrialState.RUNNING)}:
                return self._claimed(Trial(self.study, trial._trial_id), lock)
            lock.release()  # its process has ended it in the meantime
        return None

    def _next(self) -> Claim | None:
        space = self.space
        if space.hours is not None and self.hours() >= space.hours:
            return None
        is_left = space.points is None and (space.trials is None or len(self._drawn()) < space.trials)
        if not self.trials(TrialState.WAITING) and not is_left and not self._promote():
            return None
        trial = self.study.ask()
        rank = sum(each.number <= trial.number for each in self._drawn())
        if ROOT not in trial.user_attrs and space.trials is not None and rank > space.trials:
            trial.set_user_attr(SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        lock = self._lock_of(trial.number)
        if lock is None:
            raise RunError(f"{self.queue}: trial {trial.number} is locked by another process")
        return self._claimed(trial, lock)

    def _claimed(self, trial: Trial, lock: FileLock) -> Claim:
        trial.set_user_attr(PLACE, self.place)
        values = {axis.name: axis.suggest(trial) for axis in self.space.axes}
        root = root_of(trial)
        resumed_at = 0
        if root != trial.number:
            before = [each for each in self.trials() if root_of(each) == root and each.number < trial.number]
            resumed_at = max((each.last_step or 0 for each in before), default=0)
        reported = {step for each in self.trials() if each.number == trial.number for step in each.intermediate_values}
        return Claim(trial, values, lock, root, resumed_at, reported)

    def _drawn(self) -> list[FrozenTrial]:
        """Returns the trials whose settings were drawn, not promoted."""
        return [trial for trial in self.trials() if ROOT not in trial.user_attrs]

    def _promote(self) -> bool:
        """Enqueues the best pruned trial that belongs to the best of its rung, and returns whether there is one."""
        if self.space.pruning is None:
            return False
        sign = -1 if self.space.directions == ["maximize"] else 1
        roots = {root_of(trial): trial for trial in latest(self.trials())}
        for step, _ in reversed(self.space.pruning.stops(1)):
            values: dict[int, float] = {}
            for trial in self.trials():
                value = trial.intermediate_values.get(step, math.nan)
                if not math.isnan(value):  # NaN has no place in an order
                    values.setdefault(root_of(trial), sign * value)
            best = sorted(values, key=lambda root: (values[root], root))[
                : max(1, len(values) // self.space.pruning.factor)
            ]
            for root in best:
                trial = roots[root]
                if trial.state == TrialState.PRUNED and trial.last_step == step and self.run_of(root) is not None:
                    self.study.enqueue_trial(trial.params, user_attrs={ROOT: root, PLACE: self.place})
                    return True
        return False


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns an error of the storage into a RunError."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise RunError(f"the storage of the search cannot be used: {reason}") from error


def root_of(trial: Trial | FrozenTrial) -> int:
    """Returns the number of the trial that a trial resumes, or its own."""
    return trial.user_attrs.get(ROOT, trial.number)


def latest(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the last trial of each run, in the order of the runs."""
    return list({root_of(trial): trial for trial in trials}.values())
