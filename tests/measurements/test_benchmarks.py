"""The benchmarks of the trainer: each runs on tiny data, counts what it says, and states its conditions."""

import itertools
import json
import math
import time
from pathlib import Path

import pytest
import torch

from datamodules import read_data
from measurements import generated, gpu, growth, same_training, start_up, throughput, ways
from measurements.measuring import walk
from tests.support.data_sets import write_updated_release
from utils.config import load_config
from utils.errors import ConfigError, DataError

CPU = torch.device("cpu")
TINY = ("image_size=[32, 32]", "batch_size=4", "num_workers=1", "accelerator=cpu")


def words(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


@pytest.fixture(scope="module")
def cars(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cars")
    write_updated_release(folder, train_per_class=6, valid_per_class=3)
    return folder


def conditions_of(path: Path) -> dict:
    stated = json.loads(path.read_text())["conditions"]
    assert {"date", "device", "cores", "threads", "versions", "commit"} <= stated.keys()
    return stated


def batches(count: int, seconds: float):
    """Yields batches of ten, each after a wait."""
    for _ in range(count):
        time.sleep(seconds)
        yield torch.zeros(10, 1), torch.zeros(10)


def test_a_walk_tells_photos_per_second_and_the_share_that_went_by_in_the_loader():
    class Loader:
        def __iter__(self):
            return batches(4, 0.01)

    turn = walk(Loader(), CPU, 0.5, lambda images, labels: time.sleep(0.03))
    assert 150 < turn.photos_per_second < 250 and 0.15 < turn.blocked < 0.4
    alone = walk(itertools.repeat((torch.zeros(10, 1), torch.zeros(10))), CPU, 0.2, lambda *_: time.sleep(0.03))
    assert alone.photos_per_second > turn.photos_per_second and alone.blocked < 0.05


def test_a_held_batch_is_the_same_photos_with_their_own_draws_and_never_ends(cars, tmp_path):
    config = load_config(overrides=[*TINY, "augmentation_device=device", f"cache_path={tmp_path}"])
    loader = ways.own_loader(config, read_data(cars), CPU)
    batches = [images for images, labels in itertools.islice(ways.held_batch(loader), 9) if len(labels) == 4]
    assert len(batches) == 9 > len(loader) and all(torch.equal(images, batches[0]) for images in batches)
    assert batches[0].shape == (4, 3, 32, 32) and not torch.equal(batches[0][0], batches[0][1])


def test_welchs_interval():
    # By hand: 4.375 ± t(0.975, 2.8175 degrees of freedom) × √(0.473958 + 2.333333)
    interval = same_training.welch([10.0, 12.0, 11.5, 9.0], [14.0, 13.0, 18.0])
    assert interval == pytest.approx((-1.157975, 9.907975), abs=1e-6)
    assert same_training.welch([3.0, 3.0], [4.0, 4.0]) == (1.0, 1.0)


def test_generated_photos_are_a_data_set_with_the_files_of_stanford_cars(tmp_path):
    sizes = generated.write_data_set(tmp_path / "data", training_photos=30, validation_photos=10)
    annotations = read_data(tmp_path / "data")
    assert (len(annotations.train), len(annotations.valid), len(annotations.class_names)) == (30, 10, 196)
    assert 60 < sizes["mean_kilobytes"] < 250 and 0.2 < sizes["mean_megapixels"] < 0.8
    assert all(photo.path.is_file() for photo in annotations.train)


def test_a_generated_cache_has_its_size_and_is_read_as_any_other(tmp_path):
    cache = generated.write_cache(tmp_path / "photos", (5, 3, 8, 12))
    assert (tmp_path / "photos").stat().st_size == 5 * 3 * 8 * 12
    assert cache.batch([4, 0]).shape == (2, 3, 8, 12) and cache.image(1).size == (12, 8)


@pytest.mark.slow
def test_throughput_measures_every_way_in_turn(cars, tmp_path, capsys):
    report = tmp_path / "throughput.json"
    rows = throughput.main(
        ["-d", str(cars), "--rounds", "2", "--seconds", "0.1", "--output", str(report), *words(*TINY)]
    )
    ways = {row["way"] for row in rows}
    assert {"torchvision on PIL", "no cache", "cache", "whole batches"} <= ways
    assert len(rows) == 2 * len(ways) and all(row["photos_per_second"]["median"] > 0 for row in rows)
    training = {row["way"]: row for row in rows if row["what"] == "training"}
    assert all(0 <= row["stood_in_loader"] <= 1 and row["waiting"] < 1 for row in training.values())
    assert training["cache"]["work_alone"] == training["no cache"]["work_alone"]  # measured once for both
    assert training["whole batches"]["work_alone"] != training["cache"]["work_alone"]  # with the augmentation
    try:
        import timm  # noqa: F401
    except ImportError:
        assert "timm is left out" in capsys.readouterr().out
    else:
        assert "timm, ghostnet_100" in ways
    stated = conditions_of(report)
    assert (stated["photos"], stated["batch_size"], stated["precision"]) == (18, 4, "32-true")


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
        assert growth.limits(load_config(), CPU)["memory"] == limit // (3 * 227 * 227)


@pytest.mark.slow
def test_growth_tells_time_and_memory_of_each_size(tmp_path, capsys):
    report = tmp_path / "growth.json"
    rows = growth.main(
        ["--photos", "130", "--factors", "1", "3", "--image-size", "32", "32", "--rounds", "1", "--output", str(report)]
    )
    assert {row["photos"] for row in rows} == {130, 390}
    assert all(row["microseconds_per_photo"]["median"] > 0 and row["own_mb"]["median"] > 50 for row in rows)
    assert [row["times_first"] for row in rows if row["photos"] == 130] == [1.0] * (len(rows) // 2)
    assert conditions_of(report)["fits_below"]["memory"] > 1000
    assert "photos of 227×227 on" in capsys.readouterr().out


@pytest.mark.slow
def test_start_up_is_that_of_the_command_itself(cars, tmp_path):
    report = tmp_path / "start_up.json"
    rows = start_up.main(["-d", str(cars), "--rounds", "1", "--output", str(report), *words(*TINY)])
    seconds = {row["way"]: row["seconds"]["median"] for row in rows}
    assert list(seconds) == ["cache there", "cache to be built", "no cache", "wrong configuration"]
    assert seconds["wrong configuration"] < seconds["cache there"] < 60
    assert conditions_of(report)["until"] == "first checkpoint"


@pytest.mark.slow
def test_the_same_training_is_trained_once_and_goes_on_where_it_was_broken_off(cars, tmp_path, monkeypatch):
    report = tmp_path / "same.json"
    settings = ["-d", str(cars), "--runs", str(tmp_path / "runs"), "--seeds", "2", "--output", str(report)]
    settings += words(*TINY, "num_epochs=1")
    rows = same_training.main(settings)
    assert [row["way"] for row in rows] == list(same_training.WAYS)
    assert all(len(row["accuracies"]) == 2 for row in rows) and "differs" not in rows[0]
    low, high = rows[1]["difference"]
    assert rows[1]["differs"] == (not low <= 0 <= high) and not math.isnan(low)
    assert rows[1]["would_have_seen"] == pytest.approx((high - low) / 2, abs=1e-3)
    assert len(list((tmp_path / "runs").glob("*/seed-*/*/run.json"))) == 6

    started = []
    monkeypatch.setattr(same_training.train, "main", lambda words: started.append(words) or {"best_valid_acc": 0.5})
    assert same_training.main(settings) == rows and not started
    with pytest.raises(
        ConfigError, match=r"seed-0/ghost_\d+ was trained with num_epochs: 1; give --runs another folder"
    ):
        same_training.main([*settings, *words("num_epochs=2")])
    record = next((tmp_path / "runs").glob("*/seed-1/*/run.json"))
    record.write_text(record.read_text().replace('"completed"', '"interrupted"'))
    same_training.main(settings)
    assert started == [["--resume", str(record.parent)]]


def test_ways_that_differ_by_more_than_their_seeds_do_are_told_apart():
    first, same, other = [20.0, 21.0, 22.0], [20.5, 21.0, 22.5], [30.0, 31.0, 32.0]
    _, second, third = same_training.tabulate({"first": first, "same": same, "other": other})
    assert not second["differs"] and second["would_have_seen"] > 1
    assert third["differs"] and third["difference"][0] > 5


@pytest.mark.parametrize(
    ("benchmark", "wrong", "said"),
    [
        (throughput, ["--rounds", "0"], "--rounds: '0': expected a whole number from 1 on"),
        (throughput, ["--seconds", "-1"], "--seconds: '-1': expected a number of seconds above 0, at most 86400"),
        (throughput, ["--seconds", "nan"], "--seconds: 'nan': expected a number of seconds above 0"),
        (throughput, ["--seconds", "inf"], "--seconds: 'inf': expected a number of seconds above 0"),
        (growth, ["--photos", "many"], "--photos: 'many': expected a whole number from 1 on"),
        (same_training, ["--seeds", "1"], "--seeds: '1': expected a whole number from 2 on"),
        (
            throughput,
            ["-d", "x", "--output", "/nowhere/x.json"],
            "'/nowhere/x.json': expected a file in a folder that is",
        ),
        (start_up, ["-d", "x", "--output", "/tmp"], "--output: '/tmp': expected a file in a folder that is there"),
        (growth, ["--folder", "/nowhere"], "--folder: '/nowhere': expected a folder that is there"),
        (gpu, ["-d", "x", "--output", "/dev/null"], "--output: '/dev/null': expected a folder (File exists)"),
        (gpu, ["--box", "0"], "--box: '0': expected a number of seconds above 0"),
    ],
)
def test_a_wrong_number_or_path_is_one_line(capsys, benchmark, wrong, said):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(wrong)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_what_a_benchmark_cannot_measure_is_said_first(cars, tmp_path):
    with pytest.raises(
        ConfigError, match=r"--ways torchaudio: expected words of torchvision on PIL, .*, whole batches"
    ):
        throughput.main(["-d", str(cars), "--ways", "torchaudio", "--output", str(tmp_path / "x.json"), *words(*TINY)])
    with pytest.raises(ConfigError, match="--photos 4: expected more than one batch of 4"):
        growth.main(["--photos", "4", "--output", str(tmp_path / "x.json"), *words("batch_size=4")])
    with pytest.raises(DataError, match="/nowhere: this folder does not exist"):
        gpu.main(["-d", "/nowhere", "--output", str(tmp_path / "gpu"), "--parts", "run"])
    with pytest.raises(ConfigError, match=r"compile: 'fast'"):
        same_training.main(["-d", str(cars), "--runs", str(tmp_path / "runs"), "--compile", "fast"])
    with pytest.raises(ConfigError, match="--set seed: the seeds are 0, 1, 2"):
        same_training.main(["-d", str(cars), "--runs", str(tmp_path / "runs"), "--set", "seed=5"])
    assert not (tmp_path / "x.json").exists() and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_parts_for_a_gpu_survive_each_other(cars, tmp_path, capsys):
    output = tmp_path / "gpu"
    settings = ["-d", str(cars), "--output", str(output), "--epochs", "2", "--photos", "12", "6", *words(*TINY)]
    found = gpu.main([*settings, "--parts", "run", "generated"])
    assert found["run"]["epochs"] == found["generated"]["epochs"] == 2
    assert found["run"]["training_photos_per_second"] > 0 and found["generated"]["mean_kilobytes"] > 20
    assert not found["run"]["ended_by_its_box"] and found["run"]["exit_code"] == 0
    for name in ("run.log", "run.json", "run-speed.csv", "run-run.json", "generated-metrics.csv"):
        assert (output / name).is_file(), name
    rows = json.loads((output / "gpu.json").read_text())["rows"]
    assert [row["part"] for row in rows] == ["run", "generated"]
    assert "bound fused kernels, photos/s: 34,600" in capsys.readouterr().out

    found = gpu.main([*settings, "--parts", "throughput", "run", "--box", "1"])
    assert all(part["ended_by_its_box"] for part in found.values())
    assert conditions_of(output / "gpu.json")["bounds"]["eager, photos/s"] == 22_700
