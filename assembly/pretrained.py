"""Finds and loads the pretrained weights of a configuration."""

import logging
from collections.abc import Sequence

from models.classifier import Classifier
from models.finetuning.pretrained import PretrainedWeights, load_pretrained, published_weights, weights_of_file
from utils.config import Config, ConfigError, Problems
from utils.config.schema import Normalization
from utils.errors import RunError
from utils.runs import resolve_checkpoint

logger = logging.getLogger(__name__)


def find_pretrained(config: Config) -> PretrainedWeights:
    """Returns the weights that `pretrained` names; published ones are not downloaded yet.

    Raises:
        ConfigError: There are none.
    """
    if config.pretrained is True:
        return published_weights(config.architecture, image_size=config.image_size)
    try:
        path = resolve_checkpoint(config.pretrained, config.output_path)
    except RunError as error:  # a run without a checkpoint
        raise ConfigError(str(error)) from error
    return weights_of_file(path, config.architecture, image_size=config.image_size)


def resolve_pretrained(config: Config) -> Config:
    """Returns the configuration of a new run with the pretrained weights' mean and std where normalization_params_rgb says so.

    Raises:
        ConfigError: There are no such weights, or their mean and std are not known.
    """
    if config.pretrained is None:
        return config
    problems = Problems(config)
    with problems.of("pretrained"):
        weights = find_pretrained(config)
    problems.raise_any()
    if config.normalization_params_rgb != "pretrained":
        return config
    with problems.of("normalization_params_rgb"):
        if weights.mean is None:
            raise ConfigError(f"the mean and std of {weights.source} are not known; write them")
        values = Normalization(mean=list(weights.mean), std=list(weights.std))
    problems.raise_any()
    return config.model_copy(update={"normalization_params_rgb": values})


def load_pretrained_weights(config: Config, classifier: Classifier, class_names: Sequence[str]) -> None:
    """Loads the pretrained weights of a new run, and logs what was loaded and what differs from how they were trained."""
    if config.pretrained is None:
        return
    weights = find_pretrained(config)
    logger.info(load_pretrained(classifier.model, weights, class_names))
    used = config.normalization
    given = (tuple(used.mean), tuple(used.std)) if used else None
    if weights.mean and not config.convert_to_grayscale and given != (weights.mean, weights.std):
        logger.warning(
            "normalization_params_rgb: the pretrained weights were trained with mean %s and std %s; write "
            "normalization_params_rgb: pretrained to use them", list(weights.mean), list(weights.std),
        )  # fmt: skip
