"""The benchmark: exact counts, interleaved timing, and reports that show what was measured."""

import csv
import itertools
import re
import time

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import benchmark
from deployment.profiling.benchmark import Profile, build_profiles
from deployment.profiling.figure import _overlap, draw
from deployment.profiling.measure import Seconds, count_multiply_adds, interleaved, spread
from deployment.profiling.peak_memory import STATUS
from deployment.profiling.report import as_markdown, as_text, conditions, table
from deployment.trained import load_trained
from models import ARCHITECTURES, build_model
from training.checkpoints import ABOUT, read_checkpoint
from utils.errors import ConfigError
from utils.machine import available_cores

pytestmark = pytest.mark.slow
savefig = Figure.savefig


def convolutions_and_products(model: nn.Module, image: torch.Tensor) -> int:
    """Counts multiply-adds from the shapes that every convolution and linear layer sees."""
    count = 0

    def add(layer, inputs, output):
        nonlocal count
        weights_each = layer.weight[0].numel()  # multiplied for each number of the output
        count += output.numel() * weights_each

    hooks = [layer.register_forward_hook(add) for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    model(image)
    for hook in hooks:
        hook.remove()
    return count


@pytest.fixture(scope="module")
def measured(trained_run, tmp_path_factory):
    """SqueezeNet 1.0 with random weights and a trained run, measured as briefly as possible."""
    folder, threads = tmp_path_factory.mktemp("benchmark"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deployment.profiling.benchmark.TURN_SECONDS", 0.0)
        rows = benchmark.main(
            ["sq_10", str(trained_run), "--image-size", "64", "48", "--quick", "--output", str(folder)]
        )
    assert torch.get_num_threads() == threads
    return folder, rows


def test_the_table_has_the_measurements_of_each_model(measured, trained_run):
    folder, _ = measured
    squeezenet, run = csv.DictReader((folder / "benchmark.csv").read_text().splitlines())
    assert (squeezenet["model"], squeezenet["parameters"], squeezenet["accuracy"]) == ("sq_10", "835972", "")
    assert (run["model"], run["architecture"], run["parameters"]) == (trained_run.name, "shuff_v2_x05", "348967")
    assert (
        float(run["accuracy"]) == read_checkpoint(trained_run / "checkpoints/best.ckpt")[ABOUT]["metrics"]["valid_acc"]
    )
    for row in (squeezenet, run):
        assert (row["height"], row["width"]) == ("64", "48")
        model = build_model(row["architecture"], num_classes=196 if row is squeezenet else 7).eval()
        assert int(row["multiply_adds"]) == convolutions_and_products(model, torch.zeros(1, 3, 64, 48))
        assert 4 * int(row["parameters"]) < int(row["fp32_bytes"]) < 5.5 * int(row["parameters"])
        assert int(row["parameters"]) < int(row["int8_bytes"]) < 0.6 * int(row["fp32_bytes"])
        for runtime, threads in itertools.product(("eager", "onnxruntime"), {1, available_cores()}):
            low, median, high = (
                float(row[f"{runtime}_{threads}_{part}_ms"]) for part in ("quartile_1", "median", "quartile_3")
            )
            assert 0 < low <= median <= high
        assert float(row["images_per_second"]) > 0
        if STATUS.exists():
            assert int(row["fp32_bytes"]) < int(row["memory_bytes"]) < 500e6


def test_the_report_states_its_conditions(measured):
    folder, rows = measured
    text = (folder / "benchmark.md").read_text()
    assert (
        f"torch {torch.__version__.partition('+')[0]}" in text
        and "onnxruntime " in text
        and "2 interleaved rounds" in text
    )
    assert "torch.utils.flop_counter" in text and "also chose the checkpoint" in text
    cells = table(rows)
    assert (
        cells[0][:3] == ["model", "image", "accuracy, %"] and "GPU, ms" not in cells[0]
    ) or torch.cuda.is_available()
    assert cells[1][1] == "64×48" and cells[1][2] == "" and cells[2][2] == f"{100 * rows[1].accuracy:.2f}"
    with Image.open(folder / "benchmark.png") as image:
        assert image.size == (1320, 840)


@pytest.mark.parametrize(("load", "warned"), [(0.0, False), (4.0, False), (4.1, True)])
def test_a_busy_machine_causes_a_warning(monkeypatch, load, warned):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    lines = conditions(2)
    warning = "Warning: other processes were running (load 4.1 on 8 cores): latencies are too high."
    assert (lines[-1] == warning) == warned and any("Warning" in line for line in lines) == warned


def test_models_are_measured_in_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleaved(calls, rounds=2, seconds=0, min_calls=3)
    turn = 2 + 3  # of warm-up and measured
    assert "".join(order) == "".join(name * turn for name in "abcabc")
    assert {name: len(values) for name, values in times.items()} == {"a": 6, "b": 6, "c": 6}


def test_the_warm_up_is_not_counted_and_a_turn_lasts_its_time():
    durations = iter([0.05, 0.05, *[0.004] * 1000])
    times = interleaved({"a": lambda: time.sleep(next(durations))}, rounds=1, seconds=0.1)["a"]
    assert min(times) >= 0.004 and sorted(times)[len(times) // 2] < 0.03
    assert sum(times[:-1]) < 0.1 <= sum(times) + 0.02 and len(times) > 3


def test_median_and_quartiles():
    values = [0.5, 0.1, 0.4, 0.2, 0.9, 0.3]
    assert spread(values) == pytest.approx(tuple(np.percentile(values, (50, 25, 75))))


def test_none_named_means_all_26(monkeypatch):
    monkeypatch.setattr("deployment.profiling.benchmark.build_model", lambda name, **settings: nn.Identity())
    assert [row.name for row in build_profiles([], (227, 227))] == list(ARCHITECTURES) and len(ARCHITECTURES) == 26


def test_checkpoints_of_one_run_have_different_names(trained_run, monkeypatch):
    names = [str(trained_run), *(str(trained_run / f"checkpoints/{name}.ckpt") for name in ("best", "last"))]
    run = trained_run.name
    assert [row.name for row in build_profiles(names, (64, 48))] == [run, f"{run}/best", f"{run}/last"]
    monkeypatch.chdir(trained_run)
    assert [row.name for row in build_profiles(["checkpoints/last.ckpt"], (64, 48))] == [f"{run}/last"]


def test_an_unknown_name_is_an_error_that_offers_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"'mob_v3' is not an architecture, run or checkpoint. Did you mean 'mob_v2'\?"
    ):
        benchmark.main(["mob_v3", "--output", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (
            ["eff_b0", "--image-size", "0", "0"],
            [r"\[0, 0\] is too small for eff_b0; expected at least 32 pixels a side"],
        ),
        (
            ["ghost", "--image-size", "16", "64"],
            [r"\[16, 64\] is too small for ghost; expected at least 32 pixels a side"],
        ),
        (
            ["timm/x", "--image-size", "32", "0"],
            [r"\[32, 0\] is too small for timm/x; expected at least 1 pixels a side"],
        ),
        (["sq_11", "--image-size", "64", "4097"], [r"\[64, 4097\] is too large; expected at most 4096 pixels a side"]),
        (
            ["sq_10", "sq_11", "ghost", "--image-size", "20", "20"],
            ["for sq_10; expected at least 21", "for ghost; expected at least 32"],
        ),
        (["--image-size", "31", "31"], ["for ghost; expected at least 32", "for shuff_v2_x20; expected at least 32"]),
    ],
)
def test_an_unsupported_image_size_is_an_error_as_in_training(tmp_path, arguments, problems):
    with pytest.raises(ConfigError) as error:
        benchmark.main([*arguments, "--output", str(tmp_path / "out")])
    assert str(error.value).startswith("--image-size: ")
    assert all(re.search(problem, str(error.value)) for problem in problems) and error.value.exit_code == 2
    assert "sq_11" not in str(error.value) or "4097" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_tables_line_up():
    cells = [["model", "fp32, MB"], ["ghost", "12.6"], ["eff_b7", "257.1"]]
    assert as_text(cells).splitlines() == ["         fp32", "model      MB", "ghost    12.6", "eff_b7  257.1"]
    assert as_markdown(cells, ["so"]).splitlines()[2:6] == [
        "| model | fp32, MB |", "| --- | ---: |", "| ghost | 12.6 |", "| eff_b7 | 257.1 |"
    ]  # fmt: skip


def drawn(rows, path, monkeypatch) -> Figure:
    """Returns the figure that was written to `path`."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), savefig(self, *args, **kw)))
    draw(rows, path, title="conditions")
    return figures[0]


def timed(name: str, seconds: float, accuracy: float | None, parameters: int = 1_000_000) -> Profile:
    row = Profile(name, "mob_v2", nn.Identity(), torch.zeros(1), accuracy, parameters=parameters)
    row.seconds["onnxruntime", 1] = Seconds(seconds, seconds, seconds)
    return row


def test_models_without_an_accuracy_are_listed_below_the_plot(tmp_path, monkeypatch):
    rows = [timed("a", 0.003, 0.8), timed("b", 0.004, None), timed("c", 0.02, 0.9), timed("d", 0.05, None)]
    figure = drawn(rows, tmp_path / "a.png", monkeypatch)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["a", "c"]
    assert axes.get_ylabel() == "validation accuracy, %"
    points = sorted(tuple(point) for dots in axes.collections for point in dots.get_offsets())
    assert points == [pytest.approx((3, 80)), pytest.approx((20, 90))]
    assert figure.get_supxlabel() == "without accuracy: b, d"
    assert drawn([rows[0], rows[2]], tmp_path / "b.png", monkeypatch).get_supxlabel() == ""


@pytest.mark.parametrize("times", [(0.0005, 0.0009), (0.003, 0.0031), (0.02, 0.07), (0.0005, 0.02), (0.001, 5)])
def test_axes_have_plain_numbers(tmp_path, monkeypatch, times):
    rows = [timed(str(time), time, None, round(1e9 * time)) for time in times]
    (axes,) = drawn(rows, tmp_path / "a.png", monkeypatch).axes
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        places = [*axis.get_majorticklocs(), *axis.get_minorticklocs()]
        labels = [*axis.get_majorticklabels(), *axis.get_minorticklabels()]
        seen = [label.get_text() for place, label in zip(places, labels, strict=True) if low <= place <= high]
        seen = [float(text) for text in seen if text]  # not 5 × 10⁻¹
        assert 2 <= len(seen) <= 10


def test_the_plot_shows_parameters_if_no_model_has_an_accuracy(tmp_path):
    """Dots stand higher with more accuracy; without any accuracy, with more parameters."""

    def rows(accuracy):
        return [timed("small", 0.001, accuracy), timed("large", 0.1, accuracy and 0.4, 50_000_000)]

    def heights(path):
        """Returns the row of pixels of the left and of the right dot."""
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)[60:-80, 80:]
        colored = pixels.max(axis=2) - pixels.min(axis=2) > 60
        half = colored.shape[1] // 2
        return [np.argwhere(part).mean(axis=0)[0] for part in (colored[:, :half], colored[:, half:])]

    draw(rows(0.8), tmp_path / "trained.png", title="")
    left, right = heights(tmp_path / "trained.png")
    assert left < right - 100  # pixels are counted from the top
    draw(rows(None), tmp_path / "random.png", title="")
    left, right = heights(tmp_path / "random.png")
    assert right < left - 100


def test_the_overlap_of_two_labels():
    from matplotlib.transforms import Bbox

    box = Bbox.from_bounds(0, 0, 10, 4)
    assert _overlap(box, Bbox.from_bounds(8, 1, 10, 10)) == 2 * 3
    assert _overlap(box, Bbox.from_bounds(11, 0, 5, 5)) == 0


def test_a_model_that_also_sees_the_mirror_image_costs_twice_as_much(trained_run, monkeypatch):
    (once,) = build_profiles([str(trained_run)], (0, 0))
    trained = load_trained(str(trained_run), flip=True)
    monkeypatch.setattr("deployment.profiling.benchmark.load_trained", lambda name: trained)
    (both,) = build_profiles([str(trained_run)], (0, 0))
    assert count_multiply_adds(both.model, both.image) == 2 * count_multiply_adds(once.model, once.image)
