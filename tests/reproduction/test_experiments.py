"""The published experiments: every file says what ran, and their schedules and early stops come out as published."""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping

import assembly
from datamodules import DataSplits
from models.classifier import Classifier
from tests.support.reference import logged_value, needs_reference, reference_rows
from training.run_record import RunRecord
from training.signals import SignalHandler
from utils.config import CONFIG_FILE, Config, load_config

EXPERIMENTS = CONFIG_FILE.parent / "experiments"
FAULTY_BOXES = {"C-10", "C-11"}
PUBLISHED = {row["id"]: row for row in reference_rows("experiments.csv")}
CURVES = defaultdict(list)
for each in reference_rows("curves.csv"):
    CURVES[each["id"]].append(each)


def build(name: str, folder: Path) -> tuple[Config, Classifier, RunRecord, EarlyStopping]:
    """Builds an experiment as train.py does; its network without memory."""
    config = load_config(EXPERIMENTS / f"{name}.yml", overrides=["trackers=[]"])
    with torch.device("meta"):
        classifier = assembly.build_classifier(config, num_classes=196)
    annotations = DataSplits((), (), tuple(map(str, range(196))), "stanford_cars", "none")
    record = assembly.build_record(config, folder, classifier, annotations)
    callbacks = assembly.build_callbacks(config, record, class_names=("car",), signals=SignalHandler())
    (stopper,) = (callback for callback in callbacks if isinstance(callback, EarlyStopping))
    return config, classifier, record, stopper


@needs_reference
def test_there_is_a_file_for_each_published_experiment():
    names = {path.stem for path in EXPERIMENTS.glob("C-*.yml")}
    assert len(PUBLISHED) == 56
    assert names == set(PUBLISHED) | {f"{name}-published-boxes" for name in FAULTY_BOXES}


@needs_reference
@pytest.mark.parametrize("name", [*PUBLISHED, "C-10-published-boxes", "C-11-published-boxes"])
def test_the_26_parameters_equal_the_published_record_and_all_is_built_as_they_say(name, tmp_path):
    published = PUBLISHED[name.removesuffix("-published-boxes")]
    config, _, record, stopper = build(name, tmp_path)
    assert len(record.values["parameters"]) == 26
    for key, logged in record.values["parameters"].items():
        if key != "runtime":
            assert logged == logged_value(published[key]), key
    assert record.values["description"] == published["description"]
    assert config.shuffle_bounding_boxes == name.endswith("-published-boxes")

    logged = {key: logged_value(text) for key, text in published.items()}
    before, normalization = ["Resize"] + ["Grayscale"] * logged["grayscale"], ["Normalize"] * logged["normalize"]
    image, tensor = (list(logged[f"{kind}_augmentations"] or ()) for kind in ("image", "tensor"))
    train, valid = (
        [type(each).__name__ for each in (*way.resize.transforms, *way.augment.transforms)]
        for way in assembly.build_pipelines(config)
    )
    assert train == [*before, *image, "ToTensor", *tensor, *normalization]
    assert valid == [*before, "ToTensor", *normalization]
    is_plateau = logged["lr_scheduler"] == "ReduceLROnPlateau"
    assert stopper.patience == (3 * logged["lr_scheduler_params"]["patience"] if is_plateau else 15)


@needs_reference
@pytest.mark.parametrize("name", PUBLISHED)
def test_learning_rates_and_the_early_stop_come_out_as_published(name, tmp_path):
    """Replays the published losses through the ends of this project's epochs; only Lightning's trainer is a stand-in."""
    config, classifier, _, stopper = build(name, tmp_path)
    optimizer = classifier.configure_optimizers()
    trainer = SimpleNamespace(
        callback_metrics={}, should_stop=False, fast_dev_run=False, state=SimpleNamespace(fn="fit"), world_size=1,
        sanity_checking=False, optimizers=[optimizer],
        strategy=SimpleNamespace(
            reduce_boolean_decision=lambda decision, all: decision, reduce=lambda value, reduce_op: value
        ),
    )  # fmt: skip
    classifier.trainer = trainer
    classifier.log_dict = lambda metrics, logger: trainer.callback_metrics.update(
        {key: torch.tensor(metric) for key, metric in metrics.items()}
    )
    stopper._check_on_train_epoch_end = True  # what Lightning's set-up decides for one validation an epoch
    optimizer.step()
    for row in CURVES[name]:
        assert not trainer.should_stop, f"stopped before epoch {row['epoch']}"
        trainer.current_epoch = int(row["epoch"])
        classifier.train_sums, classifier.valid_sums = (
            torch.tensor([float(row[f"{split}_loss"]), 0, 0, 1, 1], dtype=torch.float64) for split in ("train", "valid")
        )
        classifier.valid_classes = torch.tensor([[0], [1]])
        classifier.last_lr = optimizer.param_groups[0]["lr"]  # in the epoch's steps
        classifier.on_validation_epoch_end()
        classifier.on_train_epoch_end()
        assert classifier.epoch_metrics["valid_loss"] == float(row["valid_loss"])
        assert float(f"{classifier.epoch_metrics['lr']:.6f}") == float(f"{float(row['lr']):.6f}"), row["epoch"]
        stopper.on_train_epoch_end(trainer, None)
    assert len(CURVES[name]) == int(PUBLISHED[name]["epochs"])
    assert trainer.should_stop or len(CURVES[name]) == config.num_epochs


@pytest.mark.parametrize(
    "name",
    ["drop-134", "drop-67-strong", "long", "scratch", "student", pytest.param("finetune", marks=pytest.mark.slow)],
)
def test_experiments_beyond_the_study_can_be_built(name):
    config = load_config(EXPERIMENTS / "beyond" / f"{name}.yml", overrides=["trackers=[]", "accelerator=cpu"])
    assembly.check_buildable(assembly.resolve_pretrained(config))


@pytest.mark.parametrize("name", ["C-1", "C-5", "C-12", "C-45", "C-46", "C-47", "C-63", "C-11-published-boxes"])
def test_every_kind_of_experiment_can_be_built(name):
    assembly.check_buildable(load_config(EXPERIMENTS / f"{name}.yml", overrides=["trackers=[]", "accelerator=cpu"]))
