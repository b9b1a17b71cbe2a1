"""One way to name a run or a checkpoint, for all commands."""

import os
from pathlib import Path

import pytest

import compare
import train
from deployment.trained import load_trained
from utils.errors import ConfigError, DamagedCheckpoint, RunError
from utils.runs import BEST, LAST, resolve_checkpoint, resolve_run
from utils.runs.folder import METRICS, write_record

STARTED = {"ghost_1": "2026-11-23T10:15:00+00:00", "ghost_2": "2026-11-23T08:16:00-02:00", "ghost_3": "a while ago"}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two runs with a start time, of which the second started later, and one without, the newest by its folder's time."""
    folder = tmp_path / "output"
    for number, (name, started) in enumerate(STARTED.items()):
        (folder / name / LAST.parent).mkdir(parents=True)
        write_record(folder / name, {"started": started})
        for checkpoint in (LAST, BEST):
            (folder / name / checkpoint).touch()
        os.utime(folder / name, (2e9 + number, 2e9 + number))
    return folder


@pytest.mark.parametrize("within", ["", "ghost_1", "ghost_1/checkpoints"])
def test_a_run_is_named_by_its_folder_its_name_or_a_checkpoint(
    output: Path, within: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(output / within)
    run = output / "ghost_1"
    relative = Path(os.path.relpath(run))
    names = ["ghost_1", "ghost_1/checkpoints/best.ckpt", str(run), f"{run}/", str(relative), str(relative / BEST)]
    for name in names:
        folder = resolve_run(name, output)
        assert folder.resolve() == run and folder.name == "ghost_1" and folder.parent.resolve() == output, name
        expected = BEST if name.endswith("best.ckpt") else LAST
        assert resolve_checkpoint(name, output, which=LAST).resolve() == run / expected, name


def test_last_is_the_run_that_was_started_last_whatever_its_checkpoints_are(output: Path):
    assert resolve_run("last", output) == output / "ghost_3"
    write_record(output / "ghost_3", {"started": "2026-11-23T10:14:00+00:00"})
    assert resolve_run("last", output) == output / "ghost_2"
    os.utime(output / "ghost_1" / LAST, (3e9, 3e9))  # a long training, started earlier
    (output / "ghost_2" / BEST).unlink()
    assert resolve_run("last", output) == output / "ghost_2"
    assert resolve_checkpoint("last", output, which=LAST) == output / "ghost_2" / LAST
    with pytest.raises(RunError, match=f"no epoch has finished yet; name {output / 'ghost_2' / LAST} to use it"):
        resolve_checkpoint("last", output)
    (output / "ghost_2" / LAST).unlink()
    with pytest.raises(RunError, match=r"ghost_2 has no checkpoint yet; the newest run with one: ghost_1$"):
        resolve_checkpoint("last", output, which=LAST)


def test_of_runs_of_the_same_second_the_last_is_the_one_with_the_highest_number(output: Path):
    for name in ("ghost_10", "ghost_9"):
        (output / name / LAST.parent).mkdir(parents=True)
        write_record(output / name, {"started": "2030-01-01T00:00:00+00:00"})
    write_record(output / "ghost_3", {"started": STARTED["ghost_1"]})
    assert resolve_run("last", output) == output / "ghost_10"


def test_an_unknown_name_is_answered_with_the_nearest(output: Path):
    with pytest.raises(ConfigError, match=rf"^gost_1: no such run; nearest in {output}: ghost_1, ghost_"):
        resolve_checkpoint("gost_1", output)
    with pytest.raises(ConfigError, match=r"^last: no such run; \S+/none has no runs yet. Start one: python train.py"):
        resolve_run("last", output / "none")
    with pytest.raises(ConfigError, match=rf"^{output} is not a run's; nearest in {output}: "):
        resolve_run(str(output), output)
    with pytest.raises(ConfigError, match=r"^gone/best.ckpt: no such file$"):
        resolve_checkpoint("gone/best.ckpt", output)


def test_every_command_takes_the_same_names(output: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(trained_run)
    for name in (".", "checkpoints/last.ckpt", trained_run.name, "last"):
        before = (trained_run / METRICS).read_bytes()
        best = train.main(["--resume", name, "--set", f"output_path={trained_run.parent}"])
        assert best["best_valid_acc"] > 0 and (trained_run / METRICS).read_bytes() == before
        assert f"files in {trained_run}:" in capsys.readouterr().out
        (run,) = compare.main([name, "--output", str(trained_run.parent), "--picture", str(output / "curves.png")])
        assert run.folder.resolve() == trained_run and run.name == trained_run.name
    for name in (".", "checkpoints/best.ckpt"):
        trained = load_trained(name)
        assert trained.path.resolve() == trained_run / BEST and trained.folder.resolve().name == trained_run.name


def test_a_training_is_resumed_from_the_last_checkpoint_alone(output: Path, tmp_path: Path):
    (tmp_path / "copy.ckpt").touch()
    for path in (output / "ghost_1" / BEST, tmp_path / "copy.ckpt"):
        with pytest.raises(ConfigError, match=f"--resume {path}: a run is resumed from its last.ckpt; name the run's"):
            train.main(["--resume", str(path)])
    with pytest.raises(DamagedCheckpoint, match=r"copy\.ckpt"):
        load_trained(str(tmp_path / "copy.ckpt"))


def test_a_configuration_beside_a_resumed_run_is_an_error(output: Path, tmp_path: Path):
    (tmp_path / "C-1.yml").write_text("optimizer: SGD")
    with pytest.raises(ConfigError, match="--config has no effect with --resume"):
        train.main(["--config", str(tmp_path / "C-1.yml"), "--resume", str(output / "ghost_1")])
