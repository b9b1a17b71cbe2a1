"""The table of experiments/README.md: every published experiment, and beside it what was measured with this project."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from reproduction.comparison import compare
from reproduction.published import EXPERIMENTS, describe, experiment_names, read_published
from reproduction.report import NONE, ORDER, batch_sentence, markdown_table, order_text
from reproduction.results import Condition, Measured, Summary, read_measured, write_measured
from utils.errors import ConfigError
from utils.files import write_text

MEASURED = EXPERIMENTS / "measured.csv"
README = EXPERIMENTS / "README.md"
BEGIN, END = "<!-- python reproduce.py --table -->", "<!-- end of the table -->"
COLUMNS = ("id", "what was tried", "training, %:", "validation, %:", "epochs:", "parameters:", "measured training, %:",
           "measured validation, %:", "measured epochs:", "runs:", "on")  # fmt: skip


def update_table(new: Sequence[Measured], *, measured: Path = MEASURED, readme: Path = README) -> int:
    """Adds the runs `new` to measured.csv, in place of earlier rows of the same runs, and writes the table anew.

    Returns:
        How many runs measured.csv has now.

    Raises:
        ConfigError: measured.csv or the README is not what this command can change.
        RunError: They cannot be written.
    """
    write_measured(measured, [*read_measured(measured), *new])
    rows = read_measured(measured)
    before, begin, rest = (readme.read_text(encoding="utf-8") if readme.exists() else "").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"{readme} has no place for the table; it goes between the lines '{BEGIN}' and '{END}'")
    write_text(readme, f"{before}{BEGIN}\n\n{table_text(rows)}\n{END}{after}")
    return len(rows)


def table_text(rows: Sequence[Measured]) -> str:
    """Returns the table, blank where nothing was measured, what its numbers mean, and what held of the study."""
    published = read_published()
    comparisons = {f"({number})": each for number, each in enumerate(compare(rows, published), start=1)}
    lines = []
    for name in experiment_names():
        figures = published.get(name)
        found = [(number, each.summaries[name]) for number, each in comparisons.items() if name in each.summaries]
        lines.append(
            (
                f"[{name}]({name}.yml)",
                describe(name, published),
                *(
                    (NONE,) * 4
                    if figures is None
                    else (
                        f"{figures.train_acc_percent:.2f}",
                        f"{figures.valid_acc_percent:.2f}",
                        figures.epochs,
                        f"{figures.num_params:,}",
                    )
                ),
                "<br>".join(f"{summary.mean_of('train_acc_percent'):.2f}" for _, summary in found),
                "<br>".join(summary.text for _, summary in found),
                "<br>".join(f"{summary.mean_of('epochs'):.0f}" for _, summary in found),
                "<br>".join(str(len(summary.runs)) for _, summary in found),
                "<br>".join(f"{(on := comparisons[number].condition).data}{on.caveat} {number}" for number, _ in found),
            )
        )
    legend = [_legend(number, each.condition, each.summaries.values()) for number, each in comparisons.items()]
    orders = [f"{number} {ORDER}\n\n{order_text(each)}" for number, each in comparisons.items()]
    return "\n".join([markdown_table(COLUMNS, lines), *legend, *orders, batch_sentence(rows)])


def _legend(number: str, condition: Condition, summaries: Iterable[Summary]) -> str:
    runs = [run for summary in summaries for run in summary.runs]
    facts = [
        ", ".join(sorted({getattr(run, name) for run in runs})) for name in ("device", "precision", "torch", "date")
    ]
    task = "" if condition.is_published else " Not the published task: not to be set against the published figures."
    return f"{number} {condition}.{task} {facts[0]}; {facts[1]}; torch {facts[2]}; {facts[3]}.\n"
