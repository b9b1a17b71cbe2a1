"""Training on several processes is training on one with all of their images, and only one of them writes and speaks.

Two processes are started as a person does it, by `python train.py` and by torchrun, and, to save the time of importing
torch, as forks that see the environment of torchrun or of srun. SyncBatchNorm is for GPUs alone: where two processes are
compared with one, the network has no batch norm.
"""

import csv
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import train
from datamodules.annotations import read_annotations
from datamodules.sampling import EpochBatches
from datamodules.stanford_cars import CarPhotos
from tests.data_sets import write_updated_release
from utils.checkpoints import Checkpoints, read_checkpoint
from utils.config import CONFIG_FILE, load_run_config
from utils.errors import RunError, UserError

PROJECT = CONFIG_FILE.parent
TRAIN_PHOTOS, VALID_PHOTOS = 15, 9  # shares of 4 + 4 and 4 + 3, and of 5 + 4: nine are not left as eight and one
BATCHED = ("augmentation_device=device",)
WITHOUT_BATCH_NORM = (
    "architecture=sq_11", "dropout=null", "out_channels=null", "optimizer=SGD", "lr_scheduler=null", "lr_scheduler_params=null",
    "optimizer_params={lr: 0.02, momentum: 0.9}",
)  # fmt: skip


@pytest.fixture(scope="module")
def cars(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cars")
    names = ("Alpha Sedan 2001", "Beta Coupe 2002", "Gamma Van 2003")
    write_updated_release(folder, train_per_class=5, valid_per_class=3, class_names=names, image_sizes=[(40, 32)])
    return folder


def arguments(cars: Path, output: Path, *changes: str, batch_size: int = 4) -> list[str]:
    settings = [
        "image_size=[32, 32]", f"batch_size={batch_size}", "num_epochs=2", "num_workers=0", "early_stopping_patience=null",
        "optimizer_params.lr=0.003", "lr_scheduler_params.milestones=[1, 3]", "accelerator=cpu", "trackers=[]",
        f"output_path={output}", f"cache_path={output}_cache", *changes,
    ]  # fmt: skip
    return ["-d", str(cars), *(word for setting in settings for word in ("--set", setting))]


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def status(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["status"]


# --- Two processes as forks --------------------------------------------------------------------------------------------


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def by_torchrun(rank: int, port: str) -> dict[str, str]:
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2"}
    return ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}


def by_srun_on_two_machines(rank: int, port: str) -> dict[str, str]:
    job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NAME": "cars", "SLURM_NODELIST": "127.0.0.1", "SLURM_NNODES": "2"}
    tasks = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0", "MASTER_PORT": port}
    return job | tasks | {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)}


def _train(environment: dict[str, str], words: list[str], seen: Path, signal_step: int | None) -> None:
    """What a fork does: trains, and notes which photos it saw."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    items: list[list] = []
    get, end = CarPhotos.__getitem__, Checkpoints.on_train_batch_end

    def noted(self, item):
        items.append(["train" if len(self) == TRAIN_PHOTOS else "valid", *item])
        return get(self, item)

    def interrupted(self, trainer, *others):
        if trainer.global_step == signal_step:
            os.kill(os.getpid(), signal.SIGTERM)
        end(self, trainer, *others)

    CarPhotos.__getitem__, Checkpoints.on_train_batch_end = noted, interrupted
    try:
        train.main(words)
    except UserError as error:
        sys.exit(error.exit_code)
    finally:
        seen.write_text(json.dumps(items))


@pytest.fixture(scope="module")
def forks():
    """Forks of a process that has imported everything, without the threads of this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT))
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["assembly", "tests.test_distributed"])
        yield context


@pytest.fixture
def train_on_two(forks, tmp_path):
    """Trains on two processes; returns their exit codes and what each of them saw."""
    numbers = itertools.count()

    def start(words, environment=by_torchrun, *, signal_step: int | None = None):
        port, name = free_port(), next(numbers)
        seen = [tmp_path / f"seen_{name}_{rank}.json" for rank in (0, 1)]
        processes = [
            forks.Process(
                target=_train, args=(environment(rank, port), words, seen[rank], signal_step if rank else None)
            )
            for rank in (0, 1)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            process.kill()
        return [process.exitcode for process in processes], [json.loads(path.read_text()) for path in seen]

    return start


@pytest.mark.parametrize("augmentations", [(), BATCHED], ids=["photo by photo", "whole batches"])
def test_two_processes_train_as_one_with_the_doubled_batch(cars, tmp_path, train_on_two, augmentations):
    changes = (*WITHOUT_BATCH_NORM, *augmentations)
    codes, _ = train_on_two(arguments(cars, tmp_path / "two", *changes, "devices=2"))
    train.main(arguments(cars, tmp_path / "one", *changes, batch_size=8))
    two, one = only(tmp_path / "two"), only(tmp_path / "one")
    assert codes == [0, 0] and len(rows(one)) == 2
    for row, other in zip(rows(two), rows(one), strict=True):
        assert {name: float(value) for name, value in row.items()} == pytest.approx(
            {name: float(value) for name, value in other.items()}, rel=2e-6
        )
    expected = read_checkpoint(one / "checkpoints/last.ckpt")["state_dict"]
    for name, value in read_checkpoint(two / "checkpoints/last.ckpt")["state_dict"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


def test_every_photo_is_seen_once_an_epoch_and_only_one_process_writes(cars, undisturbed, train_on_two):
    codes, seen = train_on_two(arguments(cars, undisturbed / "output", "devices=2"))
    assert codes == [0, 0]
    times = Counter(map(tuple, itertools.chain(*seen)))
    training = {(split, epoch, index): n for (split, epoch, index), n in times.items() if split == "train"}
    assert training == {("train", epoch, index): 1 for epoch in (0, 1) for index in range(TRAIN_PHOTOS)}
    validation = Counter(index for split, _, index in map(tuple, itertools.chain(*seen)) if split == "valid")
    assert validation == dict.fromkeys(range(VALID_PHOTOS), 2)  # once after each epoch
    assert [len(items) for items in seen] == [2 * (8 + 5), 2 * (7 + 4)]
    folder = only(undisturbed / "output")
    assert_validated_once(cars, folder)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "config.yml", "run.json", "metrics.csv", "speed.csv", "curves.png", "train.log", ".training",
        "checkpoints/last.ckpt", "checkpoints/best.ckpt",
    }  # fmt: skip
    log = (folder / "train.log").read_text()
    assert "on cpu × 2" in log and all(log.count(f"epoch {epoch}/1") == 1 for epoch in (0, 1))
    assert "WARNING" not in log and log.count("caching") == 2  # the two splits, by one process


def assert_validated_once(cars: Path, folder: Path) -> None:
    """Compares the last row with all validation photos in one batch."""
    import assembly

    classifier = assembly.build_classifier(load_run_config(folder), num_classes=3)
    classifier.load_state_dict(read_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"])
    classifier.eval()
    data = assembly.build_data(load_run_config(folder), read_annotations(cars))
    images, labels = zip(*(data.photos(data.valid)[0, index] for index in range(VALID_PHOTOS)), strict=True)
    with torch.no_grad():
        logits = classifier(torch.stack(images))
    last = rows(folder)[-1]
    assert float(last["valid_loss"]) == pytest.approx(classifier.loss(logits, torch.tensor(labels)).item(), rel=1e-5)
    assert float(last["valid_acc"]) == pytest.approx((logits.argmax(1) == torch.tensor(labels)).double().mean().item())


def test_srun_on_two_machines_gives_the_same_run(cars, undisturbed, tmp_path, train_on_two):
    codes, _ = train_on_two(
        arguments(cars, tmp_path / "output", "devices=1", "num_nodes=2"), environment=by_srun_on_two_machines
    )
    assert codes == [0, 0]
    assert_same(only(tmp_path / "output"), only(undisturbed / "output"))


@pytest.mark.parametrize("step", [1, 2])  # the first is within an epoch
def test_a_signal_to_one_process_ends_both_and_the_run_goes_on_as_the_same(
    cars, undisturbed, tmp_path, train_on_two, step
):
    codes, _ = train_on_two(arguments(cars, tmp_path / "output", "devices=2"), signal_step=step)
    folder = only(tmp_path / "output")
    assert codes == [128 + signal.SIGTERM, 0] and status(folder) == "interrupted"
    assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == step
    if step == 1:
        alone = shutil.copytree(folder, tmp_path / "alone" / folder.name)
        with pytest.raises(RunError, match="within an epoch with 8 images a step, and would go on with 4"):
            train.main(["--resume", str(alone), "--set", "devices=1"])
    codes, _ = train_on_two(["--resume", "last", "--set", f"output_path={tmp_path / 'output'}"])
    assert codes == [0, 0] and status(folder) == "completed"
    assert_same(folder, only(undisturbed / "output"))


def assert_same(folder: Path, other: Path) -> None:
    assert (folder / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    states = [read_checkpoint(each / "checkpoints/last.ckpt")["state_dict"] for each in (folder, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_processes_that_would_each_train_alone_are_refused(cars, tmp_path, train_on_two):
    codes, _ = train_on_two(arguments(cars, tmp_path / "output", "devices=1"))
    assert codes == [2, 2] and not (tmp_path / "output").exists()


@pytest.mark.parametrize("count", range(2, 20))
@pytest.mark.parametrize("processes", [2, 3])
def test_every_process_has_a_part_of_each_validation_batch(count, processes):
    if count < processes:
        pytest.skip("refused where it is used")
    parts = [
        [
            [index for _, index in batch]
            for batch in EpochBatches(count, 4, shuffle=False, rank=rank, world_size=processes)
        ]
        for rank in range(processes)
    ]
    assert sorted(itertools.chain(*itertools.chain(*parts))) == list(range(count))
    assert len({len(part) for part in parts}) == 1 and all(batch for part in parts for batch in part)


# --- Two processes as a person starts them -----------------------------------------------------------------------------


def start(cars: Path, output: Path, *changes: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [sys.executable, *launcher, "train.py", *arguments(cars, output, "devices=2", "strategy=ddp", *changes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_python_train_starts_the_second_process(cars, tmp_path):
    output, _ = start(cars, tmp_path / "output").communicate(timeout=120)
    folder = only(tmp_path / "output")
    assert status(folder) == "completed", output
    assert_validated_once(cars, folder)
    lines = output.splitlines()
    said = ("run ", "caching 15", "caching 9", "epoch 0/1", "epoch 1/1", "completed after 2 epochs")
    assert [[line.startswith(text) for line in lines].count(True) for text in said] == [1] * len(said), output
    assert len(lines) == len(said) + 8 and "warning" not in output, output  # the rest of the summary


def test_torchrun_extracts_once_and_ends_at_a_signal_with_one_checkpoint(tmp_path):
    data = tmp_path / "cars"
    write_updated_release(data, archives=True, train_per_class=5)
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port())
    process = start(data, tmp_path / "output", "num_epochs=1000", "num_workers=1", launcher=torchrun)
    deadline = time.monotonic() + 100
    while (
        not list((tmp_path / "output").glob("*/metrics.csv")) and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    folder = only(tmp_path / "output")
    assert status(folder) == "interrupted" and (folder / "checkpoints/last.ckpt").is_file(), output
    assert output.count("SIGTERM ended the training") == output.count("to go on: python train.py --resume") == 1, output
    assert len(list(data.glob("car_ims/*.jpg"))) == 21 and not list(data.glob(".*")), output
