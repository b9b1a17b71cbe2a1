"""A branch of a run: it equals, to the bit, a run of its own; what may not change is an error."""

import shutil
from pathlib import Path

import pytest
import torch

import assembly
import train
from tests.support.small_runs import assert_same_run, rows, run
from training.checkpoints import ABOUT, read_checkpoint
from utils.cli import set_options
from utils.config import load_branch_config, load_run_config
from utils.errors import ConfigError
from utils.runs.branches import Trunk
from utils.runs.folder import read_record


@pytest.fixture(scope="module")
def trunk(cars, tmp_path_factory) -> Path:
    """The folder of a run of three epochs without the second drop of `four_epochs`, with a checkpoint after two."""
    output = tmp_path_factory.mktemp("trunk")
    return run(cars, output, "num_epochs=3", "keep_checkpoints=[2]", "lr_scheduler_params.milestones=[1]")


def branch(trunk: Path, output: Path, *changes: str, at: int = 2) -> Path:
    """Branches a run and returns the branch's folder."""
    words = set_options([*changes, f"output_path={output}"])
    train.main(["--branch", str(trunk), "--at", str(at), *words])
    (folder,) = output.iterdir()
    return folder


def test_a_branch_equals_a_run_of_its_own(four_epochs, trunk, tmp_path):
    folder = branch(trunk, tmp_path, "lr_scheduler_params.milestones=[1, 3]", "num_epochs=4")
    assert_same_run(four_epochs, folder)
    record = read_record(folder)
    trunk_id = read_record(trunk)["run_id"]
    assert record["branch"] == {"run": trunk.name, "run_id": trunk_id, "path": str(trunk.resolve()), "epochs": 2}
    assert record["resumed"] == 0 and record["epochs"] == 4
    assert read_checkpoint(folder / "checkpoints/best.ckpt")[ABOUT]["config"]["num_epochs"] == 4


CONSTANT = ("lr_scheduler=null", "lr_scheduler_params=null")
PLATEAU = ("lr_scheduler=ReduceLROnPlateau", "lr_scheduler_params={factor: 0.1, patience: 1}")
BY_STEP = (
    "lr_scheduler=LambdaLR", "lr_scheduler_params={lr_lambda: 'lambda epoch: 1 if epoch < 3 else 0.1'}", "scheduler_step=batch",
)  # fmt: skip


@pytest.mark.slow
def test_averaged_weights_plateaus_and_early_stopping_go_on_from_the_trunk(cars, tmp_path, capfd):
    """Of so wide a model losses rise from the first epoch on: the best one is the trunk's, and both rules count there."""
    averaged = ("ema_decay=0.8", "keep_checkpoints=[2]", "architecture=ghost")
    trunk = run(cars, tmp_path / "trunk", *averaged, *CONSTANT, "num_epochs=3")
    for at, name, changes in (
        (2, "plateau", (*PLATEAU, "num_epochs=9", "early_stopping_patience=3")),
        (3, "by step", (*BY_STEP, "num_epochs=4")),
    ):
        straight = run(cars, tmp_path / f"straight {name}", *averaged, *changes)
        folder = branch(trunk, tmp_path / name, *changes, at=at)
        assert_same_run(straight, folder)
        assert [float(row["lr"]) for row in rows(folder)] == pytest.approx([0.003] * 3 + [0.0003])
        assert read_record(folder)["best"]["best_valid_loss_epoch"] == 0
    with pytest.raises(ConfigError, match="with a patience of 1 epochs the run would have stopped after epoch 1"):
        branch(trunk, tmp_path / "stopped", "early_stopping_patience=1", "num_epochs=4")
    train.main(["--resume", str(trunk), "--set", "num_epochs=4", "--set", "keep_checkpoints=[1, 2, 4]"])
    assert "keep_checkpoints: the run was past 1 already" in capfd.readouterr().err
    names = {path.name for path in (trunk / "checkpoints").iterdir()}
    kept = {f"epoch_{epochs}{best}.ckpt" for epochs in (2, 4) for best in ("", "_best")}
    assert names == {"last.ckpt", "best.ckpt", *kept}


def test_the_base_of_a_file_is_the_configuration_of_the_trunk(trunk, tmp_path):
    (tmp_path / "drop.yml").write_text("lr_scheduler_params: {milestones: [1, 2]}\nnum_epochs: 9\n")
    config, changed = load_branch_config(trunk, tmp_path / "drop.yml", overrides=["num_epochs=5"])
    assert (config.image_size, config.num_epochs, config.keep_checkpoints) == ([32, 32], 5, None)
    assert changed == ["num_epochs", "lr_scheduler_params"]
    (tmp_path / "based.yml").write_text("base: null\nnum_epochs: 9\n")
    with pytest.raises(ConfigError, match=r"based.yml:1: base: has no effect with --branch"):
        load_branch_config(trunk, tmp_path / "based.yml")


def test_a_trunk_that_trains_on_while_it_is_branched_is_an_error(four_epochs, tmp_path):
    """After the third epoch its last checkpoint was read, and the best one is that of the fourth by now."""
    trunk = shutil.copytree(four_epochs, tmp_path / "trunk")
    found = Trunk(trunk, 3, trunk / "checkpoints/last.ckpt", trunk / "checkpoints/best.ckpt")
    later = read_checkpoint(found.best)
    later["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] = 4
    torch.save(later, found.best)
    config = load_run_config(trunk)
    with pytest.raises(ConfigError, match=r"it is being trained, and has more than 3 epochs by now; .* \[3\]"):
        assembly.read_best(config, assembly.build_classifier(config, num_classes=4), found)


def test_a_branch_has_no_tags_of_its_trunk(four_epochs, tmp_path):
    trunk = shutil.copytree(four_epochs, tmp_path / "trunk")
    config = (trunk / "config.yml").read_text()
    (trunk / "config.yml").write_text(config.replace("tags: []", "tags: [data cars 0123abcd]"))
    assert load_run_config(trunk).tags == ["data cars 0123abcd"]
    assert load_branch_config(trunk, overrides=["num_epochs=9"])[0].tags == []


@pytest.mark.parametrize(
    ("changes", "at", "message"),
    [
        (("num_epochs=5",), 1, r"--at 1: .* has no checkpoint after 1 epochs; it has those after 2, 3\. .*: \[1\]"),
        (("num_epochs=2",), 2, "num_epochs: 2; expected more than --at 2"),
        (("dropout=0.5", "num_epochs=5"), 2, "--set dropout: a branch keeps the dropout of its run, 0.2"),
        (("seed=1", "ema_decay=0.9"), 2, r"2 problems(?s:.)*A branch can change augment_images, .*num_epochs"),
        (("teacher=trunk", "num_epochs=4"), 2, "teacher: this run began with no teacher, and has .*best.ckpt now"),
        (("warmup_epochs=0.5", "num_epochs=4"), 2, "a branch keeps the warmup_epochs of its run, 0"),
        ((), 2, "nothing is changed; to continue the run: --resume"),
        (
            ("lr_scheduler_params.milestones=[3]", "num_epochs=4"),
            2,
            r"epoch 1 would have had the learning rate 0\.003; the run had 0\.0003\. .* from epoch 2 on",
        ),
    ],
)
def test_what_cannot_be_branched_is_one_error_and_leaves_nothing(trunk, tmp_path, changes, at, message):
    changes = [change.replace("teacher=trunk", f"teacher={trunk}") for change in changes]
    words = set_options([*changes, f"output_path={tmp_path / 'output'}"])
    with pytest.raises(ConfigError, match=message):
        train.main(["--branch", str(trunk), "--at", str(at), *words])
    assert not (tmp_path / "output").exists()


def test_a_branch_mixes_the_epochs_of_its_trunk_that_a_run_of_its_own_would(cars, tmp_path):
    trunk = run(cars, tmp_path / "trunk", "num_epochs=2", "mixup_alpha=0.4", "mix_off_epochs=1")
    with pytest.raises(
        ConfigError, match="mix_off_epochs counts from the end: with this num_epochs the run would have"
    ):
        branch(trunk, tmp_path / "branch", "num_epochs=4")
    assert not (tmp_path / "branch").exists()
    assert len(rows(branch(trunk, tmp_path / "branch", "num_epochs=4", "mix_off_epochs=3"))) == 4
