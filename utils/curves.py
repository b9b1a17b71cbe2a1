"""Draws loss, accuracy and learning rate over the epochs, as the study's figures show them."""

from collections.abc import Mapping
from pathlib import Path

from utils.files import replacing
from utils.history import Row, best

PANELS = (("loss", "loss", 1.0), ("acc", "top-1 accuracy, %", 100.0))
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#edae49", "#6a4c93", "#00798c", "#8d5524", "#5c5c5c")


def draw_curves(runs: Mapping[str, list[Row]], path: Path, *, title: str = "") -> None:
    """Draws the histories of one or several runs into a PNG: training dashed, validation solid, its best marked."""
    from matplotlib.figure import Figure  # half a second that a typo need not wait for

    single = len(runs) == 1
    figure = Figure(figsize=(15, 4.6 if single else 5.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for (name, rows), colour in zip(runs.items(), COLOURS * (len(runs) // len(COLOURS) + 1), strict=False):
        epochs = [row["epoch"] for row in rows]
        for axes, (metric, _, factor) in zip(panels, PANELS, strict=False):
            for split, style in (("train", "--"), ("valid", "-")):
                values = [factor * row[f"{split}_{metric}"] for row in rows]
                label = (
                    {"train": "training", "valid": "validation"}[split]
                    if single
                    else name
                    if split == "valid"
                    else None
                )
                tone = COLOURS[split == "train"] if single else colour
                axes.plot(
                    epochs, values, style, color=tone, label=label, linewidth=1.6, alpha=1 if split == "valid" else 0.6
                )
            if (found := best(rows, f"valid_{metric}")) is not None:
                value, epoch = factor * found[0], found[1]
                axes.plot(epoch, value, "o", color=COLOURS[0] if single else colour, markersize=6)
                if single:
                    text = f"{value:.2f}{' %' if factor == 100 else ''} in epoch {epoch}"
                    inward = "right" if epoch > max(epochs) / 2 else "left"
                    axes.annotate(text, (epoch, value), (0, 9), textcoords="offset points", ha=inward, fontsize=9)
        panels[2].step(
            epochs, [row["lr"] for row in rows], where="mid", color=COLOURS[0] if single else colour, label=name
        )
    for axes, label in zip(panels, [panel[1] for panel in PANELS] + ["learning rate"], strict=True):
        axes.set(xlabel="epoch", title=label)
        axes.grid(alpha=0.25)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if any(row["lr"] > 0 for rows in runs.values() for row in rows):
        panels[2].set_yscale("log")
    panels[1].set_ylim(bottom=0)
    if single:
        panels[0].legend(frameon=False)
    else:
        figure.legend(*panels[2].get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=3)
        title = title or "validation solid, training dashed; the dot is the best epoch"
    figure.suptitle(title, fontsize=11)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
