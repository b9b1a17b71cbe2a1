"""Updates experiments/README.md: the epoch of the first drop, and the table of published and measured results."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from reproduction.comparison import compare
from reproduction.figures import draw_first_drops
from reproduction.published import EXPERIMENTS, REPEATS, describe, experiment_files, first_drops, read_published
from reproduction.report import NONE, batch_sentence, markdown_table, order_text
from reproduction.results import Measured, Setup, Summary, read_table, write_measured
from utils.errors import ConfigError
from utils.files import write_text

MEASURED = EXPERIMENTS / "measured.csv"
README = EXPERIMENTS / "README.md"
PICTURE = "first_drop.png"
BEGIN, END = "<!-- python reproduce.py --table: {} -->", "<!-- end: {} -->"
COLUMNS = ("id", "what was tried", "training, %:", "validation, %:", "epochs:", "parameters:", "measured training, %:",
           "measured validation, %:", "measured epochs:", "runs:", "on")  # fmt: skip
MIN_WEIGHT_DECAY = 0.6
MILESTONES = ("C-30", "C-31", "C-32", "C-33")  # four published runs whose milestones alone differ
FIRST_DROP = """![best accuracy against the epoch of the first drop]({picture})

Over all {count} published runs with a weight decay of at least {decay} and a learning rate that drops, whatever else they
changed:

> best validation accuracy = {line.intercept:.1f} + {line.slope:.3f} × (epoch of the first drop), r = {line.correlation:.3f}

No run is more than {residual:.1f} percentage points from this line, and it has not flattened at epoch {last}, the latest of
these drops. The runs differ in dropout, in a fourth augmentation, in the last layer, and in one case in the weight decay.

Each point is a single run. In {plateau} of the {count} runs the plateau rule chose the epoch of the drop, so the record cannot
tell cause from effect: whatever improves a run may also delay its plateau. With a weight decay of 0.2 the record
is mixed. Four runs whose milestones alone differ ({milestones}) rise from {low:.2f} to {high:.2f} % as their
first drop moves from epoch {early_first} to {early_last}. Four repeats of one setting with the plateau rule ({repeats})
dropped at epochs {late} and reached {accuracies}: no such rise.

So the study's verdicts on dropout, crops, rotation, perspective, erasing and the last layer may be verdicts on the epoch of
the drop. The record alone leaves that a doubt. Four runs whose schedules alone differ, on smaller images, support it: [their
accuracy](../docs/results.md) follows this epoch.
"""


def update_readme(new: Sequence[Measured], *, measured: Path = MEASURED, readme: Path = README) -> int:
    """Adds the runs `new` to measured.csv, replacing earlier rows of the same runs, and updates the README and its picture.

    Returns:
        The number of runs in measured.csv.

    Raises:
        ConfigError: measured.csv or the README is damaged.
        RunError: A file cannot be written.
    """
    rows = read_table(measured, Measured)
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    for name in ("first drop", "table"):
        split_at_section(readme, text, BEGIN.format(name), END.format(name))
    write_measured(measured, [*rows, *new])
    rows = read_table(measured, Measured)
    for name, content in (("first drop", first_drop_text()), ("table", table_text(rows))):
        before, after = split_at_section(readme, text, BEGIN.format(name), END.format(name))
        text = f"{before}\n\n{content}\n{after}"
    drops, others, line = first_drops(MIN_WEIGHT_DECAY)
    draw_first_drops(drops, others, line, readme.parent / PICTURE)
    write_text(readme, text)
    return len(rows)


def split_at_section(file: Path, text: str, begin: str, end: str) -> tuple[str, str]:
    """Returns the text of `file` up to and with the line `begin`, and from the line `end` on.

    Raises:
        ConfigError: A line is missing.
    """
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ConfigError(f"{file}: the lines '{begin}' and '{end}' are missing")
    return before + begin, end + after


def first_drop_text() -> str:
    """Returns what the published record says about the epoch of the first drop."""
    published = read_published()
    drops, _, line = first_drops(MIN_WEIGHT_DECAY)
    milestones, repeats = (
        sorted(names, key=lambda name: published[name].first_drop) for names in (MILESTONES, REPEATS)
    )
    residual = max(abs(drop.accuracy - line.at(drop.epoch)) for drop in drops)
    return FIRST_DROP.format(
        picture=PICTURE, count=len(drops), decay=MIN_WEIGHT_DECAY, line=line, last=max(drop.epoch for drop in drops),
        residual=math.ceil(10 * residual) / 10, plateau=sum(drop.is_plateau for drop in drops),
        repeats=_listed(repeats), accuracies=_listed(f"{published[name].valid_acc_percent:.2f}" for name in repeats) + " %",
        late=_listed(str(published[name].first_drop) for name in repeats), milestones=_listed(milestones),
        early_first=published[milestones[0]].first_drop, early_last=published[milestones[-1]].first_drop,
        low=published[milestones[0]].valid_acc_percent, high=published[milestones[-1]].valid_acc_percent,
    )  # fmt: skip


def table_text(rows: Sequence[Measured]) -> str:
    """Returns the table, blank where nothing was measured, with its legend and what held of the study."""
    published, files = read_published(), experiment_files()
    comparisons = {f"({number})": each for number, each in enumerate(compare(rows, published), start=1)}
    descriptions = {row.experiment: row.description for row in rows}
    lines = []
    for name in dict.fromkeys([*files, *descriptions]):
        results = published.get(name)
        found = [(number, each.summaries[name]) for number, each in comparisons.items() if name in each.summaries]
        lines.append(
            (
                f"[{name}]({name}.yml)" if name in files else name,
                describe(name, published) or descriptions[name],
                *(
                    (NONE,) * 4
                    if results is None
                    else (
                        f"{results.train_acc_percent:.2f}", f"{results.valid_acc_percent:.2f}", results.epochs,
                        f"{results.num_params:,}",
                    )
                ),
                "<br>".join(f"{summary.mean_of('train_acc_percent'):.2f}" for _, summary in found),
                "<br>".join(summary.text for _, summary in found),
                "<br>".join(f"{summary.mean_of('epochs'):.0f}" for _, summary in found),
                "<br>".join(str(len(summary.runs)) for _, summary in found),
                "<br>".join(f"{(on := comparisons[number].setup).data}{on.note} {number}" for number, _ in found),
            )
        )  # fmt: skip
    legend = [_legend(number, each.setup, each.summaries.values()) for number, each in comparisons.items()]
    orders = [f"{number} Did the order hold?\n\n{order_text(each)}" for number, each in comparisons.items()]
    return "\n".join([markdown_table(COLUMNS, lines), *legend, *orders, batch_sentence(rows)])


def _legend(number: str, setup: Setup, summaries: Iterable[Summary]) -> str:
    runs = [run for summary in summaries for run in summary.runs]
    facts = [
        ", ".join(sorted({getattr(run, name) for run in runs})) for name in ("device", "precision", "torch", "date")
    ]
    task = "" if setup.is_published else " Not the published task: not to be compared with the published results."
    return f"{number} {setup}.{task} {facts[0]}; {facts[1]}; torch {facts[2]}; {facts[3]}.\n"


def _listed(items: Iterable[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} and {last}"
