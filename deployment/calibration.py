"""Calibration: how far a model's probabilities can be trusted, and below which score its answer is "not sure".

Temperature and expected calibration error: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import RunError
from utils.files import write_text

FILE = "calibration.json"
BINS = 15  # of equal width, over the probability of the top-1 prediction
RATE = 0.95
MIN_IMAGES = 100
MIN_ACCEPTED = 20  # fewer right answers do not show a rate of 95 %
MAX_LOG_TEMPERATURE = 3.0
NEVER = 1.1  # a threshold above every score
SCORES: dict[str, Callable[[Tensor], Tensor]] = {  # of probabilities (N, classes), in 0 … 1
    "probability": lambda probabilities: probabilities.amax(dim=1),
    "margin": lambda probabilities: torch.sub(*probabilities.topk(2, dim=1).values.unbind(dim=1)),
}
SCORE = "probability"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """What turns logits into probabilities and into an answer.

    Attributes:
        temperature: Logits are divided by it.
        threshold: Answers with a lower score are "not sure".
        score: A name in `SCORES`.
        rate: Share of right answers, in 0 … 1, among those that the threshold accepts.
        images: Number of validation images that temperature and threshold were fitted on.
    """

    temperature: float
    threshold: float
    score: str
    rate: float
    images: int

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns the probabilities (N, classes) of logits."""
        return (logits / self.temperature).softmax(dim=1)

    def accepts(self, probabilities: Tensor) -> Tensor:
        """Returns which answers (N,) are not "not sure"."""
        return SCORES[self.score](probabilities) >= self.threshold


@dataclass(frozen=True)
class Reliability:
    """Probabilities, judged on images that they were not fitted on.

    Attributes:
        confidence: Probability of the top-1 prediction, (N,).
        score: By which answers are accepted, (N,).
        correct: Whether the top-1 prediction is right, (N,).
        accepted: Whether the score reaches the threshold, (N,); None without a calibration.
        raw_confidence: As `confidence`, with temperature 1.
    """

    confidence: Tensor
    score: Tensor
    correct: Tensor
    accepted: Tensor | None
    raw_confidence: Tensor

    def summary(self) -> dict[str, Any]:
        """Returns the figures of `summary.json`; shares in 0 … 1."""
        accepted = self.accepted
        return {
            "ece": calibration_error(self.confidence, self.correct),
            "ece_without_temperature": calibration_error(self.raw_confidence, self.correct),
            "ece_method": f"{BINS} bins of equal width over the top-1 probability",
            "accepted": None if accepted is None else float(accepted.double().mean()),
            "accepted_accuracy": (
                None if accepted is None or not accepted.any() else float(self.correct[accepted].double().mean())
            ),
        }


def calibration_bins(confidence: Tensor, correct: Tensor) -> list[tuple[float, float, int]]:
    """Returns mean confidence, accuracy and number of images of each bin that has images."""
    numbers = (confidence * BINS).long().clamp(max=BINS - 1)
    return [
        (float(confidence[own].double().mean()), float(correct[own].double().mean()), int(own.sum()))
        for own in (numbers == number for number in range(BINS))
        if own.any()
    ]


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Returns the expected calibration error: the mean of |confidence − accuracy| over the bins, by their images."""
    bins = calibration_bins(confidence, correct)
    return sum(count * abs(mean - accuracy) for mean, accuracy, count in bins) / len(confidence)


def risk_coverage(score: Tensor, correct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns each possible threshold, falling, the number of images with at least this score, and their error rate."""
    order = score.argsort(descending=True, stable=True)
    thresholds, right = score[order], correct[order].double().cumsum(0)
    count = torch.arange(1, len(score) + 1)
    last = torch.ones(len(score), dtype=torch.bool)
    last[:-1] = thresholds[:-1] != thresholds[1:]  # equal scores are accepted together
    return thresholds[last], count[last], 1 - right[last] / count[last]


def choose_threshold(score: Tensor, correct: Tensor, rate: float) -> float:
    """Returns the lowest threshold whose accepted answers are right at `rate`, or `NEVER` if there is none."""
    thresholds, count, risk = risk_coverage(score, correct)
    suitable = ((1 - risk >= rate) & (count >= MIN_ACCEPTED)).nonzero()
    return float(thresholds[suitable[-1, 0]]) if len(suitable) else NEVER


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Returns the temperature of the lowest cross entropy, in e⁻³ … e³."""
    from scipy.optimize import minimize_scalar

    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / math.exp(log_temperature), labels))

    found = minimize_scalar(loss, bounds=(-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE), method="bounded")
    return math.exp(found.x)


def calibrate(logits: Tensor, labels: Tensor, *, rate: float = RATE) -> Calibration:
    """Fits temperature and threshold."""
    temperature = fit_temperature(logits, labels)
    probabilities = (logits / temperature).softmax(dim=1)
    threshold = choose_threshold(SCORES[SCORE](probabilities), logits.argmax(dim=1) == labels, rate)
    return Calibration(temperature, threshold, SCORE, rate, len(labels))


def judge(logits: Tensor, labels: Tensor, calibration: Calibration | None) -> Reliability:
    """Judges `calibration` on images that it was not fitted on."""
    raw = logits.softmax(dim=1)
    probabilities = calibration.probabilities(logits) if calibration else raw
    return Reliability(
        confidence=probabilities.amax(dim=1),
        score=SCORES[calibration.score if calibration else SCORE](probabilities),
        correct=logits.argmax(dim=1) == labels,
        accepted=calibration.accepts(probabilities) if calibration else None,
        raw_confidence=raw.amax(dim=1),
    )


def cross_judge(logits: Tensor, labels: Tensor, *, rate: float = RATE) -> Reliability:
    """Judges each half of the images, drawn at random, by a calibration that is fitted on the other half."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    halves = order[::2], order[1::2]
    judged = [
        judge(logits[own], labels[own], calibrate(logits[other], labels[other], rate=rate))
        for own, other in (halves, halves[::-1])
    ]
    return Reliability(*(torch.cat([getattr(half, name) for half in judged]) for name in Reliability.__annotations__))


def save_calibration(folder: Path, checkpoint: Path, digest: str, calibration: Calibration) -> Path:
    """Writes the calibration of a checkpoint into `folder`/calibration.json, beside those of others, and returns this file.

    Args:
        folder: The run's.
        checkpoint: Its name in the file is the checkpoint's.
        digest: SHA-256 of the checkpoint that was calibrated, which may have been replaced since.
        calibration: Its calibration.
    """
    path = folder / FILE
    try:
        entries = _read(path)
    except RunError:
        entries = {}  # damaged, and now replaced
    entries[checkpoint.name] = {"sha256": digest, **asdict(calibration)}
    write_text(path, json.dumps(entries, indent=2) + "\n")
    return path


def load_calibration(folder: Path, checkpoint: Path, digest: str) -> Calibration | None:
    """Returns the calibration of the weights with this SHA-256; None, with a warning where there is one of others."""
    try:
        entry = _read(folder / FILE).get(checkpoint.name)
        if entry is None:
            return None
        entry = dict(entry)
        if entry.pop("sha256") != digest:
            logger.warning(
                "%s is of other weights than those of %s, and is ignored; python evaluate.py %s writes it anew",
                folder / FILE, checkpoint.name, checkpoint,
            )  # fmt: skip
            return None
        calibration = Calibration(**entry)
        if calibration.score not in SCORES or not calibration.temperature > 0 or not calibration.threshold >= 0:
            raise RunError(f"{folder / FILE} is damaged")
    except (RunError, KeyError, TypeError, ValueError):
        logger.warning("%s is damaged, and is ignored; python evaluate.py %s writes it anew", folder / FILE, checkpoint)
        return None
    return calibration


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(entries, dict):
        raise RunError(f"{path} is damaged: no mapping")
    return entries
