"""Which of several processes this is, and how they share the photos: what needs no training on several."""

import importlib
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import assembly
from datamodules import read_data
from tests.support.data_sets import write_updated_release
from utils import processes
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.machine import PROJECT
from utils.processes import RANKS, check_launch, is_first_process


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),  # torchrun, the second machine
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),  # Lightning's launcher
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # Lightning's launcher in a shell that srun has opened
        ({"RANK": ""}, True),
    ],
)
def test_the_first_process_is_known_by_the_environment(monkeypatch, environment, first):
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


@pytest.mark.parametrize(
    ("environment", "rank", "world_size", "message"),
    [
        ({"NODE_RANK": "1"}, 0, 1, r"the environment has NODE_RANK=1, .* make 1: .* run `unset NODE_RANK`"),
        ({"NODE_RANK": "1"}, 2, 2, r"the environment has NODE_RANK=1, .* make 2: "),  # devices: 2
        (
            {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
            0,
            1,
            r"has WORLD_SIZE=2, .*set devices and num_nodes to",
        ),
        ({"LOCAL_RANK": "one"}, 0, 1, r"environment variable LOCAL_RANK=one: expected a number"),
        ({"NODE_RANK": "1"}, 2, 4, None),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, 1, 2, None),
        ({}, 0, 2, None),  # Lightning starts the second one
    ],
)
def test_a_rank_left_over_in_the_environment_is_named(monkeypatch, environment, rank, world_size, message):
    for name in (*RANKS, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with nullcontext() if message is None else pytest.raises(ConfigError, match=message):
        check_launch(rank=rank, world_size=world_size)


def test_the_command_names_a_rank_left_over_in_the_shell(monkeypatch):
    monkeypatch.setenv("NODE_RANK", "1")
    with pytest.raises(ConfigError, match=r"^the environment has NODE_RANK=1, "):
        assembly.check_buildable(load_config())


def test_more_processes_than_images_are_refused(tmp_path):
    write_updated_release(tmp_path, valid_per_class=3)
    data = assembly.build_data(load_config(overrides=["cache_path=null"]), read_data(tmp_path))
    data.trainer = SimpleNamespace(global_rank=0, world_size=10)
    with pytest.raises(DataError, match="9 validation images are too few for 10 processes"):
        data.val_dataloader()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a process with its parent")
def test_a_process_does_not_outlive_the_first():
    endless = "import time, utils.processes as p; p.end_with_parent(); print(1, flush=True); time.sleep(60)"
    other = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {endless!r}])"
    settings = {"cwd": PROJECT, "env": os.environ | {"RANK": "1"}, "text": True}
    first = subprocess.Popen([sys.executable, "-c", other], stdout=subprocess.PIPE, **settings)
    first.stdout.readline()
    first.kill()
    assert first.communicate(timeout=10) == ("", None)  # the other one would hold the pipe open


def test_the_commands_start_where_the_system_has_no_sigkill(monkeypatch):
    monkeypatch.delattr("signal.SIGKILL")  # Windows
    monkeypatch.setattr("sys.platform", "win32")
    importlib.reload(processes).end_with_parent()
