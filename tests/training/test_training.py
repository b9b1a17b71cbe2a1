"""Training from the command line: what it leaves behind, and that a run that is broken off goes on as the same run."""

import os
import re
import shutil
import signal
import sys
import threading

import pytest
import torch
import yaml
from pytorch_lightning import Callback

import assembly
import train
from tests.support.data_sets import write_updated_release
from tests.support.devices import needs_cuda
from tests.support.small_runs import NAMES, assert_same_run, assert_validated, broken_off, rows, run, table
from training import run_record
from training.checkpoint_callback import Checkpoints
from training.checkpoints import ABOUT, read_checkpoint
from utils.cli import run_command, set_options
from utils.config.signatures import UNSUPPORTED, lr_schedulers
from utils.errors import ConfigError, DataError, Interrupted, RunError
from utils.runs.folder import read_record, write_record


def test_a_run_leaves_all_that_a_person_wants(four_epochs, cars):
    folder = four_epochs
    assert re.fullmatch(r"timm_test_efficientnet_\d{14}", folder.name)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".training"}
    assert found == {
        "config.yml", "run.json", "metrics.csv", "speed.csv", "curves.png", "train.log",
        "checkpoints/last.ckpt", "checkpoints/best.ckpt",
    }  # fmt: skip
    metrics = rows(folder)
    assert [row["epoch"] for row in metrics] == ["0", "1", "2", "3"]
    assert [float(row["lr"]) for row in metrics] == pytest.approx([0.003, 0.0003, 0.0003, 0.00003])
    assert all(0 <= float(row[name]) <= 1 for row in metrics for name in ("train_acc", "valid_acc", "valid_top5_acc"))
    for split, photos in (("train", 20), ("valid", 8)):  # correct predictions over the images of this epoch alone
        correct = [float(row[f"{split}_acc"]) * photos for row in metrics]
        assert correct == pytest.approx([round(number) for number in correct], abs=1e-9), split
    speed = table(folder / "speed.csv")
    assert [row["epoch"] for row in speed] == ["0", "1", "2", "3"] and float(speed[0]["images_per_second"]) > 0
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    record = read_record(folder)
    assert (
        record["status"] == "completed"
        and record["epochs"] == 4
        and record["versions"]["torch"] == torch.__version__.split("+")[0]
    )
    lowest = min(metrics, key=lambda row: float(row["valid_loss"]))
    assert record["best"]["best_valid_loss_epoch"] == int(lowest["epoch"])
    assert read_checkpoint(folder / "checkpoints/best.ckpt")["epoch"] == int(lowest["epoch"])
    about = read_checkpoint(folder / "checkpoints/last.ckpt")[ABOUT]
    assert about["class_names"] == list(NAMES)
    assert about["config"] == yaml.safe_load((folder / "config.yml").read_text())
    assert "epoch 3/3" in (folder / "train.log").read_text()


def test_the_parameters_of_a_run_are_the_studys_26(four_epochs):
    parameters = read_record(four_epochs)["parameters"]
    names = """runtime architecture num_params img_size grayscale normalize norm_params_rgb norm_params_gray crop_to_bboxes
    erase_background augment_images image_augmentations augment_tensors tensor_augmentations batch_size max_num_epochs dropout
    out_channels loss_function loss_params optimizer learning_rate weight_decay all_optimizer_params lr_scheduler
    lr_scheduler_params"""
    assert list(parameters) == names.split() and len(parameters) == 26
    assert parameters["architecture"] == "EfficientNet" and parameters["learning_rate"] == 0.003


def test_metrics_are_means_over_images_not_over_batches(four_epochs, cars):
    assert_validated(cars, four_epochs)
    assert float(rows(four_epochs)[-1]["valid_top5_acc"]) == 1.0  # of four classes


def test_the_same_seed_gives_the_same_run_and_another_another(cars, four_epochs, tmp_path):
    again = run(cars, tmp_path / "a", "num_epochs=4", "num_workers=2")  # whatever the number of workers
    assert_same_run(four_epochs, again)
    other = run(cars, tmp_path / "b", "seed=1", "num_epochs=1")
    assert rows(other)[0] != rows(four_epochs)[0]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_two_epochs_resumed_to_four_equal_four_straight(cars, four_epochs, tmp_path, workers):
    folder = run(cars, tmp_path, f"num_workers={workers}")
    record = read_record(folder) | {"seconds": 1000.0, "started": "2026-01-02T03:04:05+00:00"}
    write_record(folder, record)
    train.main(["--resume", str(folder), "--set", "num_epochs=4"])
    assert_same_run(four_epochs, folder)
    after = read_record(folder)
    assert after["resumed"] == 1 and after["seconds"] > 1000 and after["started"] == record["started"]
    speed = (folder / "speed.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in speed] == ["epoch", "0", "1", "2", "3"]


def test_a_run_that_stops_after_two_of_four_epochs_resumes_as_the_same_run(cars, four_epochs, tmp_path):
    folder = run(cars, tmp_path, "num_epochs=4", extra=("--stop-after", "2"))
    assert read_record(folder)["status"] == "interrupted" and len(rows(folder)) == 2
    with pytest.raises(ConfigError, match=r"--stop-after 2: .* has 2 epochs already"):
        train.main(["--resume", str(folder), "--stop-after", "2"])
    train.main(["--resume", str(folder)])
    assert_same_run(four_epochs, folder)


@pytest.mark.parametrize(
    ("step", "workers"),  # of 12; 3, 6, 9 and 12 are the last of their epochs
    [
        pytest.param(3, 0, marks=pytest.mark.slow),
        (8, 2),
        *(pytest.param(step, 0, marks=pytest.mark.slow) for step in (1, 2, 4, 5, 8, 10, 12)),
        pytest.param(4, 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_ended_by_a_signal_after_any_step_goes_on_as_the_same_run(
    cars, four_epochs, tmp_path, monkeypatch, step, workers
):
    folder = broken_off(cars, tmp_path, monkeypatch, step, f"num_workers={workers}")
    train.main(["--resume", "last", "--set", f"output_path={tmp_path}"])
    assert_same_run(four_epochs, folder)


@needs_cuda
@pytest.mark.parametrize("augmentation_device", ["cpu", "device"])
@pytest.mark.parametrize("how", ["precision=32-true", "precision=bf16-mixed", "precision=16-mixed", "compile=default"])
def test_on_cuda_a_deterministic_run_goes_on_as_the_same_run(cars, tmp_path, monkeypatch, how, augmentation_device):
    changes = ("accelerator=gpu", "deterministic=True", how, f"augmentation_device={augmentation_device}")
    straight = run(cars, tmp_path / "straight", "num_epochs=4", *changes)
    assert_same_run(straight, run(cars, tmp_path / "again", "num_epochs=4", *changes))
    folder = broken_off(cars, tmp_path / "parts", monkeypatch, 5, *changes)
    train.main(["--resume", str(folder)])
    assert_same_run(straight, folder)


@pytest.mark.slow
def test_photo_by_photo_without_a_cache_is_the_same_run(cars, four_epochs, tmp_path):
    assert_same_run(four_epochs, run(cars, tmp_path, "num_epochs=4", "cache_path=null"))


def test_the_start_says_once_how_photos_are_augmented_and_why(cars, tmp_path, capfd):
    run(cars, tmp_path, "num_epochs=1")
    shown = "".join(capfd.readouterr())
    assert "images are augmented one at a time on the CPU: no CUDA device is used" in shown
    assert shown.count(" are augmented ") == 1


def test_whole_batches_on_the_device_train_and_go_on_as_the_same_run(cars, tmp_path):
    whole = run(cars, tmp_path / "whole", "augmentation_device=device", "num_epochs=3")
    parts = run(cars, tmp_path / "parts", "augmentation_device=device", "num_epochs=1")
    train.main(["--resume", str(parts), "--set", "num_epochs=3"])
    assert_same_run(whole, parts)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("cache_path=null", "batches come from the cache"),
        ("image_augmentations={GaussianBlur: {kernel_size: 3}}", "GaussianBlur: it has no"),
    ],
)
def test_whole_batches_that_are_not_possible_say_why(cars, tmp_path, change, reason):
    with pytest.raises(ConfigError, match=reason):
        run(cars, tmp_path, "augmentation_device=device", change)


SCHEDULERS = {
    "ConstantLR": "{factor: 0.5, total_iters: 2}",
    "CosineAnnealingLR": "{T_max: 4}",
    "CosineAnnealingWarmRestarts": "{T_0: 2}",
    "CyclicLR": "{base_lr: 0.001, max_lr: 0.01, step_size_up: 2, scale_fn: 'lambda cycle: 0.5 ** cycle'}",
    "ExponentialLR": "{gamma: 0.5}",
    "LambdaLR": "{lr_lambda: 'lambda epoch: 0.5 ** epoch'}",
    "LinearLR": "{start_factor: 0.5, total_iters: 3}",
    "MultiStepLR": "{milestones: [1, 2]}",
    "MultiplicativeLR": "{lr_lambda: 'lambda epoch: 0.5 + 0.1 * epoch'}",
    "OneCycleLR": "{max_lr: 0.01, total_steps: 5}",
    "PolynomialLR": "{total_iters: 4, power: 2}",
    "ReduceLROnPlateau": "{factor: 0.1, patience: 0, threshold: 0.5}",
    "StepLR": "{step_size: 2}",
}


def test_every_scheduler_that_a_configuration_can_name_is_among_them():
    assert list(SCHEDULERS) == sorted(lr_schedulers().keys() - UNSUPPORTED.keys())


OFTEN = ("OneCycleLR", "ReduceLROnPlateau")  # tested each time: most to remember


@pytest.mark.parametrize(
    "scheduler", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in SCHEDULERS]
)
def test_every_kind_of_scheduler_goes_on_where_it_was_in_the_middle_of_an_epoch(cars, tmp_path, monkeypatch, scheduler):
    changes = ("num_epochs=3", "architecture=sq_11", "dropout=null", "out_channels=null")
    changes += (f"lr_scheduler={scheduler}", f"lr_scheduler_params={SCHEDULERS[scheduler]}")
    whole = run(cars, tmp_path / "whole", *changes)
    parts = broken_off(cars, tmp_path / "parts", monkeypatch, 5, *changes)
    train.main(["--resume", str(parts)])
    assert_same_run(whole, parts)
    assert len({row["lr"] for row in rows(whole)}) > 1


RECIPE = (
    "warmup_epochs=1.5", "scheduler_step=batch", "lr_scheduler=CosineAnnealingLR", "lr_scheduler_params={T_max: 4}",
    "gradient_clip_norm=1.0", "ema_decay=0.8", "head_lr_factor=5", "layer_decay=0.9", "decay_norm_and_bias=False",
    "mixup_alpha=0.5", "cutmix_alpha=1.0", "mix_probability=0.7", "mix_off_epochs=1",
)  # fmt: skip


# Of 3 and of 2 steps in each of four epochs.
@pytest.mark.parametrize(("accumulate", "step"), [pytest.param(1, 5, marks=pytest.mark.slow), (2, 3)])
def test_a_run_with_the_whole_recipe_resumes_in_the_middle_of_an_epoch(cars, tmp_path, monkeypatch, accumulate, step):
    changes = (*RECIPE, f"accumulate_batches={accumulate}")
    whole = run(cars, tmp_path / "whole", "num_epochs=4", *changes)
    parts = broken_off(cars, tmp_path / "parts", monkeypatch, step, *changes)
    train.main(["--resume", str(parts)])
    assert_same_run(whole, parts)
    last = rows(whole)[-1]
    assert {"valid_raw_loss", "valid_raw_acc", "valid_raw_top5_acc"} <= last.keys()
    assert last["valid_raw_loss"] != last["valid_loss"]
    assert_validated(cars, whole)  # with the averaged weights: what evaluate.py and export.py load


def test_early_stopping_counts_on_where_it_was_and_stays_stopped(cars, tmp_path, monkeypatch, capsys):
    changes = ("num_epochs=9", "early_stopping_patience=2", "optimizer=SGD", "optimizer_params={lr: 0.0}",
               "lr_scheduler=null", "lr_scheduler_params=null")  # fmt: skip
    whole = run(cars, tmp_path / "whole", *changes)
    epochs = len(rows(whole))
    assert 2 < epochs < 9
    parts = broken_off(cars, tmp_path / "parts", monkeypatch, 3 * (epochs - 1) + 1, *changes)  # one epoch was in vain
    train.main(["--resume", str(parts)])
    assert read_record(parts)["status"] == "early-stopped"
    train.main(["--resume", str(parts)])
    assert "Nothing is left to do" in capsys.readouterr().out
    assert_same_run(whole, parts)

    longer = ["--resume", str(parts), "--set", f"num_epochs={epochs + 8}", "--set", f"early_stopping_patience={epochs}"]
    with monkeypatch.context() as patch, pytest.raises(RunError, match="no memory"):
        patch.setattr(Checkpoints, "save", lambda *_: (_ for _ in ()).throw(RunError("no memory")))
        train.main(longer)
    assert read_record(parts)["status"] == "early-stopped"  # nothing of it is kept, so the same command tries it again
    train.main(longer)
    assert len(rows(parts)) > epochs


def test_other_classes_are_not_resumed(cars, tmp_path):
    folder = run(cars, tmp_path / "output", "num_epochs=1")
    other = tmp_path / "other"
    write_updated_release(other, class_names=NAMES[::-1], train_per_class=5, valid_per_class=2)
    with pytest.raises(ConfigError, match="data_path: its classes, or their order, are not those that this run was"):
        train.main(["--resume", str(folder), "-d", str(other), "--set", "num_epochs=2"])
    assert len(rows(folder)) == 1


def test_checkpoints_within_an_epoch(cars, four_epochs, tmp_path, monkeypatch):
    written = []
    original = Checkpoints.save

    def save(self, trainer, *names, **second_name):
        written.append(trainer.global_step)
        original(self, trainer, *names, **second_name)

    monkeypatch.setattr(Checkpoints, "save", save)
    run(cars, tmp_path, "checkpoint_interval=1.0e-9", "num_epochs=1")
    assert written == [1, 2, 3]


@pytest.mark.slow
def test_training_goes_on_while_a_checkpoint_of_the_weights_before_is_written(cars, four_epochs, tmp_path, monkeypatch):
    seen, stepped, original = [], threading.Event(), torch.save

    class Steps(Callback):
        def on_train_batch_end(self, *_) -> None:
            stepped.set()

    def slow(*arguments):
        stepped.clear()
        seen.append(stepped.wait(1))
        original(*arguments)

    callbacks = assembly.build_callbacks
    monkeypatch.setattr(assembly, "build_callbacks", lambda *a, **k: [*callbacks(*a, **k), Steps()])
    monkeypatch.setattr(torch, "save", slow)
    folder = run(cars, tmp_path, "num_epochs=4")
    assert seen == [True, True, True, False]  # nothing comes after the last, which is waited for all the same
    assert_same_run(four_epochs, folder)


def test_grayscale_boxes_and_tensor_augmentations_train(cars, tmp_path):
    folder = run(cars, tmp_path, "convert_to_grayscale=True", "crop_to_bboxes=True", "erase_background=True", "num_epochs=1",
                 "augment_tensors=True", "tensor_augmentations={RandomErasing: {p: 1.0}}")  # fmt: skip
    parameters = read_record(folder)["parameters"]
    assert (
        parameters["norm_params_gray"] == {"mean": [0.4627], "std": [0.2545]} and parameters["norm_params_rgb"] is None
    )


def test_nothing_is_written_for_a_wrong_configuration_or_wrong_data(cars, tmp_path):
    output = tmp_path / "output"
    wrong = [
        "optimizer_params={lr: -1}",
        "loss_params={epsilon: 2}",
        "accelerator=mps",
        "image_augmentations={CenterCrop: {size: 9}}",
    ]
    with pytest.raises(ConfigError) as caught:
        train.main(["-d", str(cars), "--set", f"output_path={output}", *set_options(wrong)])
    assert all(change.partition("=")[0] in str(caught.value) for change in wrong), caught.value
    with pytest.raises(DataError):
        train.main(["-d", str(tmp_path / "nowhere"), "--set", f"output_path={output}"])
    assert not output.exists()


@pytest.mark.parametrize(("workers", "cache"), [(0, "null"), (2, "null"), (2, "cache")])
def test_a_photo_that_breaks_in_training_is_named_and_the_run_says_failed(tmp_path, workers, cache):
    data = tmp_path / "data"
    photos = write_updated_release(data, train_per_class=6)
    photo = data / next(photo.name for photo in photos if photo.split == "train")
    photo.write_bytes(photo.read_bytes()[:-200])  # its header is whole
    with pytest.raises(DataError) as caught:
        cache_path = "null" if cache == "null" else tmp_path / cache
        run(data, tmp_path / "output", f"num_workers={workers}", f"cache_path={cache_path}")
    assert str(caught.value).startswith(f"{photo}: this image cannot be decoded") and "\n" not in str(caught.value)
    (folder,) = (tmp_path / "output").iterdir()
    assert read_record(folder)["status"] == "failed"


def test_errors_of_the_command_are_one_message_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "-d", str(tmp_path / "nothing")])
    assert run_command(train.main) == 2
    error = capsys.readouterr().err
    assert "error: " in error and f"{tmp_path / 'nothing'} does not exist" in error and "Traceback" not in error


def test_a_run_cannot_be_given_fewer_epochs_than_it_has_and_stays_as_it_was(cars, four_epochs):
    before = {path: path.read_bytes() for path in four_epochs.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"--set num_epochs=2: .* has 4 epochs already"):
        train.main(["--resume", str(four_epochs), "--set", "num_epochs=2"])
    assert {path: path.read_bytes() for path in four_epochs.rglob("*") if path.is_file()} == before


def test_the_weight_of_each_class_is_of_this_data_set(cars, tmp_path):
    changes = ("loss_function=CrossEntropyLoss", "num_epochs=1")
    run(cars, tmp_path / "a", *changes, "loss_params={weight: [1, 2, 3, 4]}")
    with pytest.raises(ConfigError, match="for all 4 classes"):
        train.main(["-d", str(cars), "--set", changes[0], "--set", "loss_params={weight: [1, 2, 3]}"])


def test_a_token_in_a_file_is_warned_of_and_the_end_names_the_next_command(cars, tmp_path, capfd):
    folder = run(cars, tmp_path, "num_epochs=1", "neptune_api_token=not-the-place")
    said = capfd.readouterr()
    assert "NEPTUNE_API_TOKEN" in said.err and "not-the-place" not in said.err + said.out
    assert f"next: python evaluate.py {folder}" in said.out and "completed after 1 epoch in" in said.out


def test_a_signal_while_the_checkpoint_is_read_is_no_damage(cars, four_epochs, tmp_path, monkeypatch):
    def stop(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / four_epochs.name
    shutil.copytree(four_epochs, folder)
    monkeypatch.setattr(torch, "load", stop)
    with pytest.raises(Interrupted, match=r"^SIGTERM ended the run before the first step$"):
        train.main(["--resume", str(folder), "--set", "num_epochs=5"])


def test_a_change_that_is_refused_is_not_kept(cars, four_epochs, tmp_path):
    folder = tmp_path / four_epochs.name
    shutil.copytree(four_epochs, folder)
    before = (folder / "config.yml").read_text()
    with pytest.raises(RunError, match=r"trained on 8 images a step .* with --set batch_size=8"):
        train.main(["--resume", str(folder), "--set", "num_epochs=5", "--set", "batch_size=4"])
    assert (folder / "config.yml").read_text() == before
    with pytest.raises(ConfigError, match="Did you mean 'num_epochs'"):
        train.main(["--resume", str(folder), "--set", "num_epoch=5"])


def test_a_full_disk_does_not_hide_why_a_change_was_refused(cars, four_epochs, tmp_path, monkeypatch):
    folder, written = tmp_path / four_epochs.name, []
    shutil.copytree(four_epochs, folder)

    def fill(path, text):
        written.append(path.name)
        if len(written) > 1:
            raise RunError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr(run_record, "write_text", fill)
    with pytest.raises(RunError, match="trained on 8 images a step"):
        train.main(["--resume", str(folder), "--set", "num_epochs=5", "--set", "batch_size=4"])
    assert written == ["config.yml", "config.yml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--demo", "-d", "photos"], "--demo draws its own cars; for its settings on your data"),
        (["--check", "--stop-after", "3"], "--stop-after has no effect with --check"),
    ],
)
def test_options_without_effect_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(words)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_the_demo_does_not_draw_its_cars_into_the_data_of_another_run(four_epochs):
    with pytest.raises(ConfigError, match=r"--demo: .* is no run of the demo"):
        train.main(["--demo", "--resume", str(four_epochs)])
