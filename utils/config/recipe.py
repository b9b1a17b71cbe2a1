"""Which parts of the training differ from the study's."""

from utils.config.schema import LOCAL_KEYS, Config
from utils.config.yaml_source import shown

# Keys with a default that are of the machine or of a part that has its own line at the start.
OTHERS = {
    "seed", "deterministic", "exif_orientation", "width_multiplier", "early_stopping_patience", "stop_on_nonfinite_loss",
    "augmentation_device", "devices", "num_nodes", "precision", "channels_last", "compile",
}  # fmt: skip


def recipe_lines(config: Config) -> list[str]:
    """Returns a line for each key that this project adds to the study's training and that is on."""
    lines = []
    for key, field in Config.model_fields.items():
        if field.is_required() or key in OTHERS or key in LOCAL_KEYS:
            continue
        if (value := getattr(config, key)) != field.default:
            lines.append(f"{key}: {shown(value)}")
    if config.mixup_alpha is not None or config.cutmix_alpha is not None:
        lines.append("train_acc of mixed images is against the label with the larger share")
    return lines
