"""Finds and loads the pretrained weights of a configuration."""

import logging
from collections.abc import Sequence

from models.classifier import Classifier
from models.finetuning.pretrained import PretrainedWeights, load_pretrained, published_weights, weights_of_file
from utils.config import Config, ConfigError, Problems
from utils.config.schema import Normalization
from utils.errors import RunError
from utils.runs import resolve_checkpoint


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
    """Returns the configuration of a new run with the file of its pretrained weights, and their mean and std where it asks so.

    A name such as "last" would be another run as soon as the new one has a folder.

    Raises:
        ConfigError: There are no such weights, or their mean and std are not known.
    """
    if config.pretrained is None:
        return config
    problems = Problems(config)
    with problems.of("pretrained"):
        weights = find_pretrained(config)
    problems.raise_any()
    if config.pretrained is not True:
        config = config.model_copy(update={"pretrained": weights.source})
    if config.normalization_params_rgb != "pretrained":
        return config
    with problems.of("normalization_params_rgb"):
        if weights.mean is None:
            raise ConfigError(f"the mean and std of {weights.source} are not known; write them")
        values = Normalization(mean=list(weights.mean), std=list(weights.std))
    problems.raise_any()
    return config.model_copy(update={"normalization_params_rgb": values})


def load_pretrained_weights(
    config: Config, classifier: Classifier, class_names: Sequence[str]
) -> list[tuple[int, str]]:
    """Loads the pretrained weights of a new run.

    Returns:
        Messages and their levels of `logging`: what was loaded, and what differs from how the weights were trained.

    Raises:
        ConfigError: They do not fit the model.
    """
    if config.pretrained is None:
        return []
    weights = find_pretrained(config)
    messages = [(logging.INFO, load_pretrained(classifier.model, weights, class_names))]
    used = config.normalization
    given = (tuple(used.mean), tuple(used.std)) if used else None
    if weights.mean and not config.convert_to_grayscale and given != (weights.mean, weights.std):
        messages.append(
            (
                logging.WARNING,
                f"normalization_params_rgb: the pretrained weights were trained with mean {list(weights.mean)} and std "
                f"{list(weights.std or ())}; write normalization_params_rgb: pretrained to use them",
            )
        )
    return messages
