"""Runs as trainings leave them, without the training, and what MLflow has of them."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from utils.config import load_config
from utils.files import write_csv
from utils.runs.folder import CONFIG, CURVES, METRICS, write_record
from utils.runs.metrics import COLUMNS, Row, best_values
from utils.tracking.mlflow import open_store
from utils.tracking.parameters import study_parameters
from utils.tracking.trackers import Trackers

STUDY_PARAMETERS = {
    "runtime", "architecture", "num_params", "img_size", "grayscale", "normalize", "norm_params_rgb",
    "norm_params_gray", "crop_to_bboxes", "erase_background", "augment_images", "image_augmentations",
    "augment_tensors", "tensor_augmentations", "batch_size", "max_num_epochs", "dropout", "out_channels",
    "loss_function", "loss_params", "optimizer", "learning_rate", "weight_decay", "all_optimizer_params",
    "lr_scheduler", "lr_scheduler_params",
}  # fmt: skip
ROWS: list[Row] = [
    {"epoch": 0, "train_loss": 5.2, "train_acc": 0.01, "valid_loss": 5.1, "valid_acc": 0.02, "lr": 0.001}
    | {"train_top5_acc": 0.04, "valid_top5_acc": 0.05, "valid_mean_class_acc": 0.03},
    {"epoch": 1, "train_loss": 1 / 3, "train_acc": 2 / 3, "valid_loss": 4.9, "valid_acc": 0.5, "lr": 0.001}
    | {"train_top5_acc": 0.9, "valid_top5_acc": 0.8, "valid_mean_class_acc": 0.4},
    {"epoch": 2, "train_loss": 0.1, "train_acc": 0.6, "valid_loss": 5.0, "valid_acc": 0.7, "lr": 1e-5}
    | {"train_top5_acc": 0.8, "valid_top5_acc": 0.85, "valid_mean_class_acc": 0.6},
]


class Run:
    """A run as a training leaves it, epoch by epoch, without the training."""

    def __init__(self, output: Path, name: str = "ghost_20261123000000", **settings: Any) -> None:
        self.folder = output / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = load_config(overrides=[f"{key}={json.dumps(value)}" for key, value in settings.items()])
        self.record = {
            "name": name, "run_id": f"id_of_{name}", "experiment_id": "C-50", "description": "Milestones: 67 ü",
            "tags": ["baseline", "gray"], "status": "running", "error": None, "seconds": 0.0, "runtime": "local",
            "started": datetime(2026, 11, 23, 4, 5, 6, tzinfo=UTC).isoformat(), "versions": {"torch": "2.11.0"},
            "commit": "0123abc", "best": {},
            "parameters": study_parameters(self.config, architecture="GhostNet", num_params=3_041_412, weight_decay=0.6),
        }  # fmt: skip
        (self.folder / CONFIG).write_text("architecture: ghost\n", encoding="utf-8")
        self.rows: list[Row] = []
        self.trackers = Trackers(self.config, self.folder, self.record["run_id"])

    def start(self) -> None:
        write_record(self.folder, self.record)
        self.trackers.start(self.record, [self.folder / CONFIG])

    def train(self, row: Row, *, logged: bool = True) -> None:
        self.rows = [old for old in self.rows if old["epoch"] < row["epoch"]] + [row]
        write_csv(self.folder / METRICS, self.rows, [*COLUMNS, *(row.keys() - {*COLUMNS})])
        if logged:
            self.trackers.log_epoch(row | best_values(self.rows))

    def end(self, status: str = "completed", error: str | None = None) -> None:
        self.record |= {"status": status, "error": error, "seconds": 3723.5, "best": best_values(self.rows)}
        (self.folder / CURVES).write_bytes(b"\x89PNG of the curves")
        write_record(self.folder, self.record)
        self.trackers.end(self.record, [self.folder / CURVES])
        self.trackers.release()

    def whole(self) -> "Run":
        self.start()
        for row in ROWS:
            self.train(row)
        self.end()
        return self


def stored_runs(output: Path) -> list[Any]:
    client, experiment = open_store(output)
    return client.search_runs([experiment], order_by=["attributes.start_time"])


def points(output: Path, run: Any, metric: str) -> list[tuple[int, float]]:
    client, _ = open_store(output)
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
