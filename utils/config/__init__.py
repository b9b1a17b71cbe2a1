"""Loads and checks the configuration. Nothing here imports torch: a typo is answered in well under a second."""

from utils.config.loading import CONFIG_FILE, RESUME_KEYS, Config, Problems, load_config, load_run_config, parse_config
from utils.errors import ConfigError

__all__ = [
    "CONFIG_FILE",
    "RESUME_KEYS",
    "Config",
    "ConfigError",
    "Problems",
    "load_config",
    "load_run_config",
    "parse_config",
]
