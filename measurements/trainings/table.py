"""Adds finished runs to the table and the picture of docs/results.md: python -m measurements.trainings.table RUN …

Without a run it writes both again from trained.csv. Accuracies are those of the validation split, which also chose the best
epoch; the last epoch was chosen by nothing. Latency is of one image in onnxruntime on one thread.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

from deployment.evaluation.evaluation import wilson_interval
from deployment.profiling.benchmark import Profile, build_profiles, measure
from deployment.profiling.measure import count_multiply_adds
from models import count_parameters
from reproduction.figures import new_figure, save_figure
from reproduction.published import TASK as PUBLISHED_TASK
from reproduction.published import Published, first_drops, read_published
from reproduction.readme import MIN_WEIGHT_DECAY, split_at_section
from reproduction.report import NONE, markdown_table
from reproduction.results import read_table
from utils.cli import run_command
from utils.config import load_config, read_config_file
from utils.errors import RunError
from utils.files import write_csv, write_text
from utils.machine import PROJECT, available_cores, cpu_name
from utils.runs.curves import COLORS
from utils.runs.folder import CONFIG, METRICS, SPEED, has_ended, read_record
from utils.runs.metrics import best, read_rows
from utils.runs.resolve import resolve_run

TRAINED = Path(__file__).parent / "trained.csv"
RESULTS = PROJECT / "docs" / "results.md"
PICTURE = "trained.png"
BEGIN, END = "<!-- python -m measurements.trainings.table: table -->", "<!-- end: table -->"
COLUMNS = ("", "what", "task", "epochs:", "first drop:", "best, % (95 %):", "in epoch, from 0:", "last, %:",
           "raw, best / last, %:", "top-5, %:", "published, %:", "parameters, millions:", "latency, ms:", "hours:")  # fmt: skip
DROPS = "drops.png"
ROUNDS = 2
OVERLAP, NEAR_PERCENT = 0.02, 2.5  # of labels: share of the axis, percentage points


@dataclass(frozen=True)
class Trained:
    """A finished run, a row of trained.csv; accuracies in percent.

    Attributes:
        experiment: `experiment_id`.
        size: Height × width of the images in evaluation.
        first_drop: First milestone of the learning rate within the training; None without one.
        best_percent, last_percent: Of the averaged weights where there are some.
        raw_best_percent, raw_last_percent: Of the weights that are not averaged; None without averaged ones.
        top5_percent: In the best epoch.
        latency_ms: Of one image in onnxruntime on one thread of `device`.
        hours: Of training: those of the median epoch times the epochs, so that pauses do not count.
        device: The machine of the latency.
    """

    experiment: str
    description: str
    seed: int
    data: str
    train_images: int
    valid_images: int
    size: str
    epochs: int
    first_drop: int | None
    best_percent: float
    best_epoch: int
    last_percent: float
    raw_best_percent: float | None
    raw_last_percent: float | None
    top5_percent: float
    parameters: int
    multiply_adds: int
    latency_ms: float
    hours: float
    device: str
    torch: str
    commit: str
    date: str
    run: str

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the best accuracy, in percent."""
        low, high = wilson_interval(round(self.best_percent / 100 * self.valid_images), self.valid_images)
        return 100 * low, 100 * high

    @property
    def network(self) -> tuple[str, int, int]:
        """As `network_of` of its profile."""
        return self.size, self.parameters, self.multiply_adds

    @property
    def task(self) -> str:
        return f"{self.size}, {self.data}, {self.train_images:,} / {self.valid_images:,}"


def main(argv: Sequence[str] | None = None) -> list[Trained]:
    """Adds the runs to trained.csv, writes the table and the picture, and returns all rows."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="*",
        help="a finished run: folder or name; to measure a latency again, name all runs of its network",
    )
    arguments = parser.parse_args(argv)
    published = read_published()
    known, *_ = _read_all()  # what is damaged is an error before anything is measured
    output_path = load_config().output_path if arguments.runs else Path()
    new = read_runs([resolve_run(name, output_path) for name in arguments.runs], known)
    known, before, after = _read_all()  # again: another process may have added runs meanwhile
    rows = {row.run: row for row in (*known, *new)}
    ordered = sorted(rows.values(), key=lambda row: (row.size, row.experiment, row.epochs, row.run))
    write_csv(TRAINED, [asdict(row) for row in ordered], [field.name for field in fields(Trained)])
    write_text(RESULTS, f"{before}\n\n{table(ordered, published)}\n{after}")
    draw(ordered, published, RESULTS.parent / PICTURE)
    if series := drop_series(ordered):
        draw_drops(series, RESULTS.parent / DROPS)
    print(f"{len(ordered)} runs in {TRAINED}, shown in {RESULTS}; picture: {RESULTS.parent / PICTURE}")
    return ordered


def _read_all() -> tuple[list[Trained], str, str]:
    return read_table(TRAINED, Trained), *split_at_section(RESULTS, RESULTS.read_text(encoding="utf-8"), BEGIN, END)


def read_runs(folders: Iterable[Path], known: Iterable[Trained] = ()) -> list[Trained]:
    """Returns the rows of finished runs; measures the latency of each network that no other row of `known` has.

    Raises:
        RunError: A run is not finished.
    """
    folders = list(folders)
    for folder in folders:
        if not has_ended(folder) or not read_rows(folder / METRICS):
            raise RunError(f"{folder} is not finished: status {read_record(folder).get('status', 'unknown')}")
    given = {folder.resolve().name for folder in folders}
    device = f"{cpu_name()}, {available_cores()} cores"
    latencies = {row.network: row.latency_ms for row in known if row.run not in given and row.device == device}
    profiles = build_profiles([str(folder) for folder in folders], (0, 0)) if folders else []
    networks = [network_of(profile) for profile in profiles]
    unknown = {network: one for network, one in zip(networks, profiles, strict=True) if network not in latencies}
    with tempfile.TemporaryDirectory() as scratch:
        measure(list(unknown.values()), Path(scratch), rounds=ROUNDS)
    latencies |= {network: round(1e3 * one.seconds["onnxruntime", 1].median, 2) for network, one in unknown.items()}
    found = []
    for folder, network in zip(folders, networks, strict=True):
        size, parameters, multiply_adds = network
        record, values = read_record(folder), read_config_file(folder / CONFIG).values
        rows, speeds = read_rows(folder / METRICS), read_rows(folder / SPEED)
        accuracy, epoch = best(rows, "valid_acc") or (float("nan"), 0)
        raw = best(rows, "valid_raw_acc")
        milestones = (values.get("lr_scheduler_params") or {}).get("milestones") or []
        found.append(Trained(
            experiment=record["experiment_id"] or "",
            description=record["description"] or "",
            seed=values["seed"],
            data=Path(values["data_path"]).name,
            train_images=record["train_photos"],
            valid_images=record["valid_photos"],
            size=size,
            epochs=len(rows),
            first_drop=milestones[0] if milestones and milestones[0] < len(rows) else None,
            best_percent=_percent(accuracy),
            best_epoch=epoch,
            last_percent=_percent(rows[-1]["valid_acc"]),
            raw_best_percent=_percent(raw[0]) if raw else None,
            raw_last_percent=_percent(rows[-1]["valid_raw_acc"]) if raw else None,
            top5_percent=_percent(rows[epoch]["valid_top5_acc"]),
            parameters=parameters,
            multiply_adds=multiply_adds,
            latency_ms=latencies[network],
            hours=round(len(speeds) * statistics.median(row["seconds"] for row in speeds) / 3600, 2),
            device=device,
            torch=record["versions"]["torch"],
            commit=record["commit"] or "unknown",
            date=record["started"][:10],
            run=folder.resolve().name,
        ))  # fmt: skip
    return found


def network_of(profile: Profile) -> tuple[str, int, int]:
    """Returns what latency is taken to depend on: networks equal in it share one measurement."""
    size = "×".join(map(str, profile.image.shape[2:]))
    return size, count_parameters(profile.model), count_multiply_adds(profile.model, profile.image)


def table(rows: Sequence[Trained], published: dict[str, Published]) -> str:
    """Returns the runs as a table, numbered as in the picture, with the conditions below it."""
    lines = []
    for number, row in enumerate(rows, start=1):
        known = published.get(row.experiment)
        has_raw = row.raw_best_percent is not None
        lines.append((
            str(number), ": ".join(filter(None, (row.experiment, row.description))), row.task, str(row.epochs),
            NONE if row.first_drop is None else str(row.first_drop),
            f"{row.best_percent:.2f} ({row.interval[0]:.2f} … {row.interval[1]:.2f})", str(row.best_epoch),
            f"{row.last_percent:.2f}", f"{row.raw_best_percent:.2f} / {row.raw_last_percent:.2f}" if has_raw else NONE,
            f"{row.top5_percent:.2f}", f"{known.valid_acc_percent:.2f}" if known else NONE,
            f"{row.parameters / 1e6:.2f}", f"{row.latency_ms:.1f}", f"{row.hours:.2f}",
        ))  # fmt: skip
    facts = [", ".join(sorted({getattr(row, name) for row in rows})) for name in ("device", "torch", "date")]
    seeds = ", ".join(sorted({str(row.seed) for row in rows}))
    notes = (
        f"Published: on {PUBLISHED_TASK}; another task than any above. Validation images chose the best epoch, and nothing "
        "chose the last one. Where weights are averaged, the accuracies are theirs, and those of the raw ones stand apart. "
        f"Latency: one image, onnxruntime, one thread of {facts[0]}; equal networks share one measurement. Hours: the median "
        "epoch's times the epochs, so that neither pauses nor a slow first epoch count; of a branch those after its trunk's. "
        f"Each row is one run, seed {seeds}. torch {facts[1]}; {facts[2]}."
    )
    parts = [markdown_table(COLUMNS, lines), notes, f"\n![accuracy against epochs, parameters and latency]({PICTURE})"]
    if series := drop_series(rows):
        lines = [f"- {name}: {slope_text(members)}" for name, members in series.items()]
        parts += [f"\n![accuracy against the epoch of the first drop]({DROPS})\n", *lines]
    return "\n".join(parts) + "\n"


def drop_series(rows: Sequence[Trained]) -> dict[str, list[Trained]]:
    """Returns the runs of an experiment, a task and a seed that differ in their first drop, by its epoch."""
    series: dict[str, dict[int, Trained]] = {}
    for row in rows:
        if row.first_drop is not None:
            series.setdefault(f"{row.experiment}, {row.task}, seed {row.seed}", {})[row.first_drop] = row
    return {name: [runs[drop] for drop in sorted(runs)] for name, runs in series.items() if len(runs) > 1}


def slope_text(runs: Sequence[Trained]) -> str:
    """Returns the accuracy after each first drop, and the slope between neighbors, in percentage points an epoch."""
    steps = [
        f"{(after.best_percent - before.best_percent) / (after.first_drop - before.first_drop):+.3f}"
        for before, after in pairwise(runs)
    ]
    reached = ", ".join(f"{run.best_percent:.2f} % (drop at {run.first_drop})" for run in runs)
    return f"{reached}; {', '.join(steps)} points an epoch in between"


def draw(rows: Sequence[Trained], published: dict[str, Published], path: Path) -> None:
    """Draws best accuracy against epochs, parameters and latency, a color for each task; published results are hollow."""
    figure = new_figure(15, 5.4)
    panels = figure.subplots(1, 3, sharey=True)
    tasks = list(dict.fromkeys(row.task for row in rows))
    axes_of = {"epochs": lambda row: row.epochs, "million parameters": lambda row: row.parameters / 1e6,
               "ms an image, one CPU thread": lambda row: row.latency_ms}  # fmt: skip
    for panel, (label, value) in zip(panels, axes_of.items(), strict=True):
        near = OVERLAP * max(map(value, rows))
        for task, color in zip(tasks, COLORS * len(tasks), strict=False):
            members = [(number, row) for number, row in enumerate(rows, start=1) if row.task == task]
            panel.errorbar(
                [value(row) for _, row in members], [row.best_percent for _, row in members],
                yerr=_errors(row for _, row in members),
                fmt="o", markersize=5, color=color, elinewidth=1.1, label=task if panel is panels[0] else None,
            )  # fmt: skip
            for text, point in labels([(value(row), row.best_percent, str(number)) for number, row in members], near):
                panel.annotate(text, point, (5, 3), textcoords="offset points", fontsize=8, color=color)
        panel.set(xlabel=label, ylim=(0, 100))
    known = [published[name] for name in dict.fromkeys(row.experiment for row in rows) if name in published]
    for panel, attribute, factor in ((panels[0], "epochs", 1), (panels[1], "num_params", 1e-6)):
        if known:
            panel.plot(
                [factor * getattr(each, attribute) for each in known], [each.valid_acc_percent for each in known], "o",
                markersize=7, markerfacecolor="none", color="black",
                label=f"published, {PUBLISHED_TASK}" if panel is panels[0] else None,
            )  # fmt: skip
    panels[0].set_ylabel("best validation accuracy, %")
    panels[0].set_xlim(left=0)
    figure.legend(loc="outside upper left", frameon=False, fontsize=9.5, alignment="left", ncols=2)
    save_figure(figure, list(panels), path)


def labels(points: Iterable[tuple[float, float, str]], near: float) -> list[tuple[str, tuple[float, float]]]:
    """Returns the labels of `points` (x, y in percent, name), and their places; points nearer than `near` in x share one."""
    merged: list[tuple[float, float, list[str]]] = []
    for x, y, name in points:
        for first_x, first_y, names in merged:
            if abs(x - first_x) <= near and abs(y - first_y) <= NEAR_PERCENT:
                names.append(name)
                break
        else:
            merged.append((x, y, [name]))
    return [(", ".join(names), (x, y)) for x, y, names in merged]


def draw_drops(series: dict[str, list[Trained]], path: Path) -> None:
    """Draws best accuracy against the epoch of the first drop of the learning rate, beside the published runs in gray."""
    figure = new_figure(10, 6)
    axes = figure.subplots()
    drops, _, line = first_drops(MIN_WEIGHT_DECAY)
    axes.plot(
        *zip(*(drop.point for drop in drops), strict=True), "o", color="0.6", markersize=5,
        label=f"published, {PUBLISHED_TASK}: {line.slope:+.3f} points an epoch, {len(drops)} runs that differ in more",
    )  # fmt: skip
    for (name, runs), color in zip(series.items(), COLORS * len(series), strict=False):
        axes.errorbar(
            [run.first_drop for run in runs], [run.best_percent for run in runs], yerr=_errors(runs), fmt="o-",
            color=color, markersize=5, linewidth=1.2, label=f"{name}: runs that differ in the schedule alone",
        )  # fmt: skip
    axes.set(
        xlabel="epoch of the first drop of the learning rate", ylabel="best validation accuracy, %", xlim=(0, None),
        ylim=(0, 100),
    )  # fmt: skip
    figure.legend(loc="outside upper left", frameon=False, fontsize=9.5, alignment="left")
    save_figure(figure, [axes], path)


def _errors(rows: Iterable[Trained]) -> list[tuple[float, ...]]:
    """Returns the distances to both ends of each interval, as matplotlib draws them."""
    pairs = ((row.best_percent - row.interval[0], row.interval[1] - row.best_percent) for row in rows)
    return list(zip(*pairs, strict=True))


def _percent(share: float) -> float:
    return round(100 * share, 2)


if __name__ == "__main__":
    sys.exit(run_command(main))
