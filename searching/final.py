"""The final figure of a search: the accuracy on the test split, which had no part in it."""

from pathlib import Path

from reproduction.comparison import Accuracy, pooled_spread
from searching.results import UNKNOWN_SPREAD, Repeated
from searching.study import Search


def test_accuracy(search: Search, best: Repeated) -> Accuracy | None:
    """Returns the mean accuracy of the best trial's repeats, or else of its run, on the test split; imports torch.

    None without a test split, or if another machine has the runs. Each run is evaluated once: the study keeps its accuracy.
    """
    runs = [
        run for result in best.repeats or (best.trial,) if result.run and (run := search.folder / result.run).is_dir()
    ]
    if not best.trial.test_images or not runs:
        return None
    percents = [100 * _evaluated(search, run) for run in runs]
    spread = pooled_spread([percents]) or UNKNOWN_SPREAD
    return Accuracy(sum(percents) / len(percents), best.trial.test_images, len(percents), spread)


def _evaluated(search: Search, run: Path) -> float:
    name = f"test {search.space.accuracy} {run.name}"
    if name not in search.study.user_attrs:
        from deployment.evaluation.evaluation import evaluate, load_split
        from deployment.trained import load_trained

        trained = load_trained(str(run))
        images, splits = load_split(trained, None, "test")
        search.study.set_user_attr(name, evaluate(trained, images, splits).metrics[search.space.accuracy])
    return search.study.user_attrs[name]
