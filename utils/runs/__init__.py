"""Run folders: their files, names, metrics and curves, and the comparison of runs. Nothing here imports torch."""

from utils.runs.folder import BEST, LAST
from utils.runs.resolve import list_runs, resolve_checkpoint, resolve_run

__all__ = ["BEST", "LAST", "list_runs", "resolve_checkpoint", "resolve_run"]
