"""Writes what a search found: its trials as CSV, a summary as Markdown, a picture, and configuration files for train.py."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from reproduction.comparison import Accuracy, margin_of_error
from reproduction.planning import DATA_KEYS
from reproduction.report import NONE, markdown_table
from searching.figures import draw_search
from searching.results import Repeated, Result, pareto_front, ranked
from searching.space import Space, describe, round_number
from searching.study import Search
from utils.config import LOCAL_KEYS, load_config
from utils.config.yaml_source import yaml_text
from utils.files import write_csv, write_text
from utils.runs.comparison import format_table
from utils.runs.summary import duration

MIN_IMPORTANCE = 8  # finished trials
MAX_SHOWN = 10  # trials in the terminal
MAX_LOSS = 1e6  # that is written with its decimals


@dataclass(frozen=True)
class Findings:
    """What a report is made of.

    Attributes:
        judged: The best trials with their repeats, the best first.
        test: Accuracy of the best one on the test split; None without such a split.
        chosen: The trials whose configuration is written: the best one, or the Pareto front.
    """

    search: Search
    results: list[Result]
    judged: list[Repeated]
    test: Accuracy | None

    @property
    def space(self) -> Space:
        return self.search.space

    @property
    def front(self) -> list[Result]:
        return pareto_front(self.search, self.results) if len(self.space.metrics) > 1 else []

    @property
    def chosen(self) -> list[Result]:
        return self.front or [self.judged[0].trial]


def write_report(found: Findings) -> list[Path]:
    """Writes the files of a search into its folder and returns them.

    Raises:
        RunError: The folder cannot be written.
    """
    space, folder = found.space, found.search.folder
    paths = {name: folder / f"{space.name}.{name}" for name in ("csv", "png", "md")}
    write_csv(paths["csv"], [_row(space, result) for result in found.results])
    draw_search(space, found.results, found.judged, found.front, paths["png"])
    configs = [_write_config(found, result) for result in found.chosen]
    picture = f"![accuracy against each setting and against cost]({paths['png'].name})\n"
    columns, rows = _table(space, [*ranked(space, found.results), *(r for r in found.results if not r.is_finished)])
    parts = [
        f"# Search {space.name}\n\nWritten by `python search.py {space.file}`.\n",
        "\n".join(f"- {line}" for line in lines(found)) + "\n",
        picture,
        markdown_table([f"{column}:" if column in space.metrics else column for column in columns], rows),
    ]
    if space.pruning:
        parts.append("A pruned trial shows its value when it was pruned.\n")
    write_text(paths["md"], "\n".join(parts))
    return [*paths.values(), *configs]


def terminal_text(found: Findings, *, width: int) -> str:
    """Returns the best trials as a table, and the findings, for a terminal."""
    columns, rows = _table(found.space, ranked(found.space, found.results)[:MAX_SHOWN])
    table = format_table([[column, *cells] for column, *cells in zip(columns, *rows, strict=True)], width=width)
    return "\n".join([table, "", *lines(found)])


def lines(found: Findings) -> list[str]:
    """Returns the findings, one a line."""
    space, counts = found.space, {}
    for result in found.results:
        counts[result.state] = counts.get(result.state, 0) + 1
    hours = duration(3600 * found.search.hours())
    text = [f"{', '.join(f'{count} {state}' for state, count in counts.items())}; {hours} of training"]
    best = found.judged[0]
    if found.front:
        text += [f"Pareto front: trial {r.number}, {describe(r.values)}: {_objectives(space, r)}" for r in found.front]
    text.append(f"best: trial {best.trial.number}, {describe(best.trial.values)}: {_objectives(space, best.trial)}")
    own = f"{_interval(best.accuracy)} on the {best.trial.valid_images:,} validation images"
    if best.repeats:
        text.append(f"its {_metric(space.accuracy)}, mean of {len(best.repeats)} other seeds: {own}")
    else:
        text.append(
            f"its {_metric(space.accuracy)}: {own}, which chose it among {counts['finished']}: expect less elsewhere. The "
            "interval knows no spread between seeds; --confirm 3 measures it"
        )
    if found.test is not None:
        runs = f", mean of {found.test.runs} seeds" if found.test.runs > 1 else ""
        text.append(f"on the {found.test.images:,} test images, which chose nothing: {_interval(found.test)}{runs}")
    elif not best.trial.test_images:
        text.append("there are no test images: set validation_fraction in the space to keep some apart")
    else:
        text.append("another machine has the runs of the best: --report there has their accuracy on the test images")
    text += _differences(found.judged)
    text += _importances(found)
    text += [f"trial {r.number} failed: {r.reason}" for r in found.results if r.state == "failed"]
    return text


def _differences(judged: Sequence[Repeated]) -> list[str]:
    """Returns a line for each other judged trial: whether its difference from the best is larger than chance."""
    text = []
    for other in judged[1:]:
        difference = judged[0].above(other)
        verdict = "larger than chance" if difference.is_significant else "within chance"
        text.append(
            f"trial {judged[0].trial.number} against trial {other.trial.number}, {describe(other.trial.values)}: "
            f"{difference.points:+.2f} ± {difference.margin:.2f} points, {verdict}"
        )
    return text


def _importances(found: Findings) -> list[str]:
    """Returns how much each axis matters, by Optuna's PED-ANOVA."""
    finished = [result for result in found.results if result.is_finished]
    varied = len({result.objectives[0] for result in finished}) > 1
    if len(finished) < MIN_IMPORTANCE or not varied or len(found.space.axes) < 2:
        return []
    sign = -1 if found.space.directions[0] == "maximize" else 1  # PED-ANOVA takes low values of a target as good
    with warnings.catch_warnings(action="ignore"):
        shares = optuna.importance.get_param_importances(
            found.search.study, target=lambda trial: sign * trial.values[0], normalize=True
        )
    text = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    return [f"importance (PED-ANOVA, {len(finished)} finished trials): {text}"]


def _write_config(found: Findings, result: Result) -> Path:
    """Writes the configuration of a trial, ready for train.py, and returns its path."""
    space, folder = found.space, found.search.folder
    name = f"{space.name}-best.yml" if not found.front else f"{space.name}-trial-{result.number}.yml"
    config, base = space.config(result.values).plain(), load_config(space.base).plain()
    kept = {*config} - {*LOCAL_KEYS} | {*DATA_KEYS}
    changed = {key: value for key, value in config.items() if value != base[key] and key in kept}
    values = {
        "base": os.path.relpath(space.base, folder),
        "experiment_id": name.removesuffix(".yml"),
        "description": f"trial {result.number} of the search {space.name}: {_objectives(space, result)}",
        **changed,
    }
    write_text(folder / name, yaml_text(values, width=120))
    return folder / name


def _table(space: Space, results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    columns = [
        "trial",
        "state",
        *(axis.name for axis in space.axes),
        *space.metrics,
        "epochs",
        "parameters",
        "time",
        "run",
    ]
    rows = []
    for result in results:
        values = [round_number(result.values.get(axis.name, NONE)) for axis in space.axes]
        objectives = [_number(metric, value) for metric, value in zip(space.metrics, result.objectives, strict=False)]
        objectives += [NONE] * (len(space.metrics) - len(objectives))
        parameters = NONE if result.num_params is None else f"{result.num_params:,}"
        rows.append(
            [str(result.number), result.state, *values, *objectives, str(result.epochs), parameters,
             duration(result.seconds), result.run or NONE]
        )  # fmt: skip
    return columns, rows


def _row(space: Space, result: Result) -> dict[str, Any]:
    objectives = [*result.objectives, *[None] * len(space.metrics)]
    names = ("accuracy", "epochs", "seconds", "num_params", "valid_images", "test_images", "run", "reason")
    return {
        "trial": result.number,
        "state": result.state,
        **{axis.name: result.values.get(axis.name) for axis in space.axes},
        **{f"best_{name}": value for name, value in zip(space.metrics, objectives, strict=False)},
        **{name: getattr(result, name) for name in names},
    }


def _objectives(space: Space, result: Result) -> str:
    pairs = zip(space.metrics, result.objectives, strict=False)
    return ", ".join(f"{_metric(metric)} {_number(metric, value)}" for metric, value in pairs)


def _metric(name: str) -> str:
    return {"valid_acc": "top-1 accuracy", "valid_top5_acc": "top-5 accuracy"}.get(name, name)


def _number(metric: str, value: float) -> str:
    if metric.endswith("acc"):
        return f"{100 * value:.2f} %"
    if metric.endswith("loss"):
        return f"{value:.4f}" if value < MAX_LOSS else f"{value:.4g}"
    return f"{value:.2f} ms" if metric == "latency" else f"{value:,.0f}"


def _interval(accuracy: Accuracy) -> str:
    return f"{accuracy.percent:.2f} ± {margin_of_error(accuracy):.2f} %"
