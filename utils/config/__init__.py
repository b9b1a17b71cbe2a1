"""Loads and checks the configuration. Nothing here imports torch: a typo is answered in well under a second."""

from utils.config.loading import (
    CONFIG_FILE,
    Config,
    load_branch_config,
    load_config,
    load_run_config,
    local_overrides,
    overridden_key,
    parse_config,
    read_config_file,
)
from utils.config.problems import Problems
from utils.config.schema import LOCAL_KEYS, RENAMED_KEYS, RESUMABLE_KEYS
from utils.errors import ConfigError

__all__ = [
    "CONFIG_FILE",
    "LOCAL_KEYS",
    "RENAMED_KEYS",
    "RESUMABLE_KEYS",
    "Config",
    "ConfigError",
    "Problems",
    "load_branch_config",
    "load_config",
    "load_run_config",
    "local_overrides",
    "overridden_key",
    "parse_config",
    "read_config_file",
]
