"""Every command of the README runs: here with small settings appended, or word for word in .ci/run."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image
from torch.distributed.run import get_args_parser

import benchmark
import compare
import evaluate
import export
import predict
import reproduce
import train
from utils.config import CONFIG_FILE

PROJECT = CONFIG_FILE.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
SEVERAL = re.findall(r"```text\n(.*?)```", README, re.DOTALL)[0].splitlines()  # no machine of the tests has the devices
SET_UP = [command for command in COMMANDS if command.startswith("pip ")]
LONG = ("benchmark.py", "export.py", "reproduce.py")  # CI runs the tests marked as slow too
SMALL = ("image_size=[32, 32]", "num_epochs=1", "batch_size=8", "num_workers=0", "accelerator=cpu", "trackers=[]")


def small(data: Path, *changes: str) -> list[str]:
    return ["-d", str(data), *(word for change in (*SMALL, *changes) for word in ("--set", change))]


def test_the_readme_shows_each_command_once():
    assert len(COMMANDS) == len(set(COMMANDS)) >= 12
    entries = {path.name for path in PROJECT.glob("*.py")} - {"assembly.py"}
    assert {shlex.split(command)[1] for command in COMMANDS if command.startswith("python ")} == entries


def test_the_set_up_commands_run_in_ci():
    script = (PROJECT / ".ci" / "run").read_text()
    for command in SET_UP:
        assert f"\n{command}\n" in script, command


@pytest.mark.parametrize("command", SEVERAL)
def test_each_command_for_several_devices_and_machines_can_be_read(command):
    launcher, _, arguments = command.partition("train.py ")
    config, resumed = train.read_configuration(train.parse_arguments(shlex.split(arguments)))
    assert resumed is None
    words = shlex.split(launcher)
    if words[0] == "torchrun":
        started = get_args_parser().parse_args([*words[1:], "train.py"])
        assert (int(started.nnodes), int(started.nproc_per_node)) == (config.num_nodes, config.devices)
    elif words[0] == "srun":
        options = dict(zip(words[1:-1:2], words[2:-1:2], strict=True))
        assert options == {"--nodes": str(config.num_nodes), "--ntasks-per-node": str(config.devices)}
    else:
        assert words == ["python"] and config.num_nodes == 1 and config.devices > 1


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.slow if command.split()[1] in LONG else ())
        for command in COMMANDS
        if command.startswith("python ") and "dashboard" not in command
    ],
)
def test_each_command_runs(command, car_photos, trained_run, tmp_path, monkeypatch, capsys):
    script, *arguments = shlex.split(command)[1:]
    Image.new("RGB", (64, 48), "red").save(tmp_path / "photo.jpg")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / trained_run.name).symlink_to(trained_run)
    for name in ("config.yml", "experiments"):
        (tmp_path / name).symlink_to(PROJECT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["a test"])
    output = tmp_path / "output"
    if script == "train.py" and "--resume" not in arguments:
        train.main([*arguments, *small(car_photos, f"output_path={output}", f"cache_path={tmp_path / 'cache'}")])
    elif script == "train.py":
        train.main(arguments)
        assert "Nothing is left to do" in capsys.readouterr().out
    elif script == "reproduce.py":
        changes = small(car_photos, f"cache_path={tmp_path / 'cache'}")
        reproduce.main([*arguments, *changes, "--output", str(output)])
    elif script == "benchmark.py":
        monkeypatch.setattr("deployment.profiling.benchmark.TURN_SECONDS", 0.0)
        benchmark.main([*arguments, "--quick", "--output", str(output / "benchmark")])
    else:
        {"compare.py": compare, "evaluate.py": evaluate, "export.py": export, "predict.py": predict}[script].main(
            arguments
        )
