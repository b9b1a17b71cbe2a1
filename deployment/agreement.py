"""Compares the outputs of an exported file with those of the model it was made from."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAX_PROBABILITY_DIFFERENCE = 1e-4  # of 32-bit files with preprocessing inside
MAX_LOGIT_DIFFERENCE = 1e-3  # of 32-bit files, relative to the largest logit or to 1
MIN_TOP1_AGREEMENT = 0.75  # of 8-bit files; an undertrained model has many small margins, and 8 bits flip some
MAX_ACCURACY_DROP = 0.03  # of 8-bit files


@dataclass(frozen=True)
class Agreement:
    """How an exported file agrees with its model.

    Attributes:
        images: Number of images compared.
        max_difference: Largest absolute difference of two outputs.
        max_logit: Largest absolute output of the model.
        top1: Share of images with the same top-1 prediction, in 0 … 1.
        accuracy, exported_accuracy: Of the model and of the file, in 0 … 1.
        output: What was compared, "logits" or "probabilities".
    """

    images: int
    max_difference: float
    max_logit: float
    top1: float
    accuracy: float
    exported_accuracy: float
    output: str = "logits"


def measure_agreement(logits: "Tensor", exported: "Tensor", labels: "Tensor", *, output: str = "logits") -> Agreement:
    """Compares the logits, or probabilities, (N, classes) of a model with those of an exported file; `labels` is (N,)."""
    predicted, exported_predicted = logits.argmax(dim=1), exported.argmax(dim=1)
    return Agreement(
        images=len(labels),
        max_difference=float((logits - exported).abs().max()),
        max_logit=float(logits.abs().max()),
        top1=float((predicted == exported_predicted).double().mean()),
        accuracy=float((predicted == labels).double().mean()),
        exported_accuracy=float((exported_predicted == labels).double().mean()),
        output=output,
    )


def output_problems(agreement: Agreement) -> list[str]:
    """Returns why a 32-bit file is rejected: its logits or probabilities differ, or are NaN."""
    if agreement.output == "probabilities":
        limit = MAX_PROBABILITY_DIFFERENCE
    else:
        limit = MAX_LOGIT_DIFFERENCE * max(1.0, agreement.max_logit)
    if agreement.max_difference <= limit:
        return []
    return [f"{agreement.output} differ by up to {agreement.max_difference:.2g}; the limit is {limit:.2g}"]


def prediction_problems(agreement: Agreement) -> list[str]:
    """Returns why an 8-bit file is rejected: its predictions differ too often, or its accuracy drops too far."""
    problems = []
    if not agreement.top1 >= MIN_TOP1_AGREEMENT:
        problems.append(
            f"same top-1 prediction for {agreement.top1:.1%} of {agreement.images} images; "
            f"the minimum is {MIN_TOP1_AGREEMENT:.0%}"
        )
    drop = round(agreement.accuracy - agreement.exported_accuracy, 9)  # 0.5 − 0.48 is 0.02
    if not drop <= MAX_ACCURACY_DROP:
        problems.append(
            f"accuracy {agreement.exported_accuracy:.2%} instead of {agreement.accuracy:.2%}; "
            f"the maximum drop is {MAX_ACCURACY_DROP:.0%}"
        )
    return problems
