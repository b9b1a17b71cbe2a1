"""Training on several processes is training on one with all of their images, and only one of them writes and speaks.

Two processes are started as a person does it, by `python train.py` and by torchrun, and, to save the time of importing
torch, as forks that see the environment of torchrun or of srun. SyncBatchNorm is for GPUs alone: where two processes are
compared with one, the network has no batch norm.
"""

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

import psutil
import pytest
import torch

import train
from datamodules import images
from datamodules.datamodule import ImageDataset
from datamodules.images import read_image
from models import build_model
from models.classifier import Classifier
from tests.support.data_sets import write_updated_release
from tests.support.small_runs import assert_same_run, assert_validated, rows
from training import run_record
from training.checkpoint_callback import Checkpoints
from training.checkpoints import read_checkpoint
from utils.cli import set_options
from utils.errors import RunError, UserError
from utils.machine import PROJECT
from utils.runs.folder import read_record
from utils.runs.summary import summarize

pytestmark = pytest.mark.slow
TRAIN_PHOTOS, VALID_PHOTOS = 15, 9  # shares of 4 + 4 and 4 + 3, and of 5 + 4: nine are not left as eight and one
WITHOUT_BATCH_NORM = (
    "architecture=sq_11", "dropout=null", "out_channels=null", "optimizer=SGD", "lr_scheduler=null", "lr_scheduler_params=null",
    "optimizer_params={lr: 0.006, momentum: 0.9}",
)  # fmt: skip
WHOLE_BATCHES_AND_SUMS = (
    "augmentation_device=device", "loss_function=CrossEntropyLoss", "loss_params={reduction: sum}", "optimizer_params.lr=0.001",
)  # fmt: skip

CLASS_WEIGHTS = ("loss_function=CrossEntropyLoss", "loss_params={weight: [1.0, 5.0, 0.2], label_smoothing: 0.1}")
RECIPE = (
    "warmup_epochs=1.5", "gradient_clip_norm=0.5", "ema_decay=0.5", "head_lr_factor=3", "decay_norm_and_bias=False",
)  # fmt: skip
MIXING = ("mixup_alpha=0.5", "cutmix_alpha=1.0", "mix_probability=0.7")
LBFGS = ("optimizer=LBFGS", "optimizer_params={lr: 0.05, max_iter: 3}", "precision=64-true")


# What Python tells an audit hook of changes to files: https://docs.python.org/3/library/audit_events.html
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "sqlite3.connect")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


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
    return ["-d", str(cars), *set_options(settings)]


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def status(folder: Path) -> str:
    return read_record(folder)["status"]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


# --- Two processes as a person starts them -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def started(cars, tmp_path_factory):
    """Two trainings side by side: by torchrun, from archives and without an end, and by `python train.py`."""
    output, archives = tmp_path_factory.mktemp("started"), tmp_path_factory.mktemp("archives")
    write_updated_release(archives, archives=True, train_per_class=5)
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}")
    runs = {}
    for name, launcher, data, *changes in (
        ("torchrun", torchrun, archives, "num_epochs=1000", "num_workers=1"),
        ("python", (), cars, "strategy=ddp"),
    ):
        command = [sys.executable, *launcher, "train.py", *arguments(data, output / name, "devices=2", *changes)]
        settings = {
            "cwd": PROJECT,
            "env": os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
            "text": True,
        }
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings)
        runs[name] = process, output / name, data
    yield runs
    for process, *_ in runs.values():
        process.kill()
        process.communicate()


def test_torchrun_extracts_once_and_ends_at_a_signal_with_one_checkpoint(started):
    process, path, data = started["torchrun"]
    deadline = time.monotonic() + 100
    while not list(path.glob("*/metrics.csv")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    hung = not list(path.glob("*/metrics.csv"))
    if hung:  # let each process write where it waits
        for child in psutil.Process(process.pid).children(recursive=True):
            child.send_signal(signal.SIGABRT)
    process.send_signal(signal.SIGTERM)  # it hands it on to both
    output, _ = process.communicate(timeout=60)
    assert not hung, output
    folder = only(path)
    assert status(folder) == "interrupted" and (folder / "checkpoints/last.ckpt").is_file(), output
    assert output.count("SIGTERM ended the training") == output.count("to resume: python train.py --resume") == 1, (
        output
    )
    assert len(list(data.glob("car_ims/*.jpg"))) == 21 and not list(data.glob(".*")), output


def test_python_train_starts_the_second_process_and_only_one_speaks(cars, started):
    process, path, _ = started["python"]
    output, _ = process.communicate(timeout=100)
    folder = only(path)
    assert status(folder) == "completed" and process.returncode == 0, output
    assert_validated(cars, folder)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "config.yml", "run.json", "metrics.csv", "speed.csv", "curves.png", "train.log", ".training",
        "checkpoints/last.ckpt", "checkpoints/best.ckpt",
    }  # fmt: skip
    messages = ("run ", "images are augmented", "caching 15", "caching 9", "epoch 0/1", "epoch 1/1")
    logged = (folder / "train.log").read_text().splitlines()
    assert len(logged) == 6 and all(
        f" INFO    {message}" in line for message, line in zip(messages, logged, strict=True)
    )
    lines = output.splitlines()
    messages = (f"{cars}: ", *messages)
    summary = summarize(folder).splitlines()
    assert lines[-len(summary) :] == summary and len(lines) == len(messages) + len(summary), output
    for message in messages:
        assert [line.startswith(message) for line in lines].count(True) == 1, output


# --- Two processes as forks --------------------------------------------------------------------------------------------


def by_torchrun(rank: int, port: str) -> dict[str, str]:
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2"}
    return ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}


def by_srun_on_two_machines(rank: int, port: str) -> dict[str, str]:
    job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NAME": "cars", "SLURM_NODELIST": "127.0.0.1", "SLURM_NNODES": "2"}
    tasks = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0", "MASTER_PORT": port}
    return job | tasks | {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)}


def _train(environment: dict[str, str], words: list[str], seen: Path, fault: tuple[str, int] | None) -> None:
    """What a fork does: trains, notes its images, files and collectives, and has a fault after a step."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    items: list[list] = []
    written: list[str] = []
    steps: list[str] = []
    get, decode, all_reduce = ImageDataset.__getitem__, read_image, torch.distributed.all_reduce
    end, valid_end, track = (
        Checkpoints.on_train_batch_end,
        Checkpoints.on_validation_batch_end,
        Classifier._track_nonfinite,
    )

    def noted(self, item):
        items.append(["train" if len(self) == TRAIN_PHOTOS else "valid", *item])
        return get(self, item)

    def decoded(path, **options):
        items.append(["decoded", 0, path.name])
        return decode(path, **options)

    def reduced(tensor, *arguments, group=None, **settings):
        steps.append("devices" if group in (None, torch.distributed.group.WORLD) else "hosts")
        return all_reduce(tensor, *arguments, group=group, **settings)

    def ended(self, trainer, *others):
        steps.append("train")
        if fault in (("signal", trainer.global_step), ("kill", trainer.global_step)):
            os.kill(os.getpid(), signal.SIGTERM if fault[0] == "signal" else signal.SIGKILL)
        end(self, trainer, *others)

    def validated(self, *others):
        steps.append("valid")
        valid_end(self, *others)

    def spoiled(self, loss):
        track(self, loss * float("nan") if fault == ("loss", self.trainer.global_step) else loss)

    def heard(event, values):
        if event in CHANGES or (event == "open" and values[2] & WRITING):
            written.extend(str(value) for value in values)

    sys.addaudithook(heard)
    ImageDataset.__getitem__, images.read_image = noted, decoded
    Checkpoints.on_train_batch_end, Checkpoints.on_validation_batch_end = ended, validated
    Classifier._track_nonfinite, torch.distributed.all_reduce = spoiled, reduced
    run_record.draw_curves = lambda *_, **__: None  # half of the time of so small a run
    try:
        train.main(words)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        seen.write_text(json.dumps({"items": items, "written": written.copy(), "steps": steps}))


@pytest.fixture(scope="module")
def train_on_two(tmp_path_factory):
    """Trains on two forks of a process that has imported everything; returns their exit codes and what each has seen.

    A fault is one of the second process; `others` is its command line where that differs. It must not write anything but,
    as the first of a machine of its own, the cache.
    """
    base = str(tmp_path_factory.getbasetemp())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT))
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["assembly", "tests.training.test_distributed"])

        def start(words, environment=by_torchrun, *, fault=None, others=None):
            port, folder = free_port(), tmp_path_factory.mktemp("seen")
            seen = [folder / name for name in ("first.json", "second.json")]
            processes = [
                context.Process(
                    target=_train, args=(environment(rank, port), line, seen[rank], fault if rank else None)
                )
                for rank, line in enumerate((words, others or words))
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join(60)
                process.kill()
            found = [json.loads(path.read_text()) if path.exists() else {"written": []} for path in seen]
            first, second = ([path for path in each["written"] if path.startswith(base)] for each in found)
            assert not [path for path in second if "_cache" not in path]
            codes = [process.exitcode for process in processes]
            assert codes[0] or any(path.endswith("metrics.csv") for path in first)  # it is heard what is written
            return codes, found

        yield start


@pytest.mark.parametrize(
    "others",
    [(), WHOLE_BATCHES_AND_SUMS, CLASS_WEIGHTS, LBFGS, (*RECIPE, *CLASS_WEIGHTS, "accumulate_batches=2")],
    ids=["per image", "batched, summed loss", "class weights", "LBFGS", "recipe"],
)
def test_two_processes_train_as_one_with_the_doubled_batch(cars, tmp_path, train_on_two, others):
    changes = (*WITHOUT_BATCH_NORM, *others)
    codes, _ = train_on_two(arguments(cars, tmp_path / "two", *changes, "devices=2"))
    train.main(arguments(cars, tmp_path / "one", *changes, batch_size=8))
    assert codes == [0, 0]
    assert_as_one(only(tmp_path / "two"), only(tmp_path / "one"))


def assert_as_one(two: Path, one: Path) -> None:
    """Compares a run on two processes with one on one, of two epochs each."""
    assert len(rows(one)) == 2
    for row, other in zip(rows(two), rows(one), strict=True):
        values, expected = ({name: float(value) for name, value in each.items()} for each in (row, other))
        assert values == pytest.approx(expected, rel=1e-6)
    expected = read_checkpoint(one / "checkpoints/last.ckpt")["state_dict"]
    for name, value in read_checkpoint(two / "checkpoints/last.ckpt")["state_dict"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=2e-7)


def test_a_taught_run_is_branched_and_resumed_on_two_processes_as_on_one(cars, tmp_path, train_on_two):
    """The trunk has one epoch of two steps; the branch is ended by a signal after its first step."""
    train.main(arguments(cars, tmp_path / "teacher", "num_epochs=1"))
    (tmp_path / "origins.yml").write_text("Alpha Sedan 2001: a\nBeta Coupe 2002: b\nGamma Van 2003: a\n")
    targets = (
        f"teacher={only(tmp_path / 'teacher')}", "distillation_temperature=0.1",  # the teacher is not sure of much yet
        f"auxiliary_targets=[{tmp_path / 'origins.yml'}]",
    )  # fmt: skip
    changes = (*WITHOUT_BATCH_NORM, *CLASS_WEIGHTS, *targets)
    drop = ("lr_scheduler=MultiStepLR", "lr_scheduler_params={milestones: [1]}")
    codes, _ = train_on_two(arguments(cars, tmp_path / "trunk", *changes, "devices=2", "num_epochs=1"))
    assert codes == [0, 0]
    settings = (*drop, "num_epochs=2", f"output_path={tmp_path / 'two'}")
    words = set_options(settings)
    codes, _ = train_on_two(["--branch", str(only(tmp_path / "trunk")), "--at", "1", *words], fault=("signal", 3))
    assert codes == [128 + signal.SIGTERM, 0]
    codes, _ = train_on_two(["--resume", "last", "--set", f"output_path={tmp_path / 'two'}"])
    assert codes == [0, 0]
    train.main(arguments(cars, tmp_path / "one", *changes, *drop, batch_size=8))
    assert_as_one(only(tmp_path / "two"), only(tmp_path / "one"))
    assert float(rows(only(tmp_path / "one"))[-1]["train_origins_acc"]) > 0


@pytest.fixture(scope="module")
def undisturbed(cars, tmp_path_factory, train_on_two):
    """A run of GhostNet on two processes: its folder and what each of them has seen."""
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    codes, seen = train_on_two(arguments(cars, output, "devices=2"))
    assert codes == [0, 0]
    return only(output), [each["items"] for each in seen]


def test_the_recipe_with_a_frozen_backbone_resumes_on_two_processes(cars, tmp_path, train_on_two):
    torch.save(build_model("ghost", num_classes=3, dropout=0.2, out_channels=320).state_dict(), tmp_path / "ghost.pth")
    changes = (*RECIPE, *MIXING, "devices=2", f"pretrained={tmp_path / 'ghost.pth'}", "freeze_epochs=1", "num_epochs=2")
    codes, _ = train_on_two(arguments(cars, tmp_path / "whole", *changes))
    assert codes == [0, 0]
    for step in (1, 3):  # in the frozen epoch, and in the one after it
        output = tmp_path / f"parts {step}"
        codes, _ = train_on_two(arguments(cars, output, *changes), fault=("signal", step))
        assert codes == [128 + signal.SIGTERM, 0]
        codes, _ = train_on_two(["--resume", "last", "--set", f"output_path={output}"])
        assert codes == [0, 0]
        assert_same_run(only(output), only(tmp_path / "whole"))


def test_every_photo_is_seen_once_an_epoch_and_decoded_by_one_process(cars, undisturbed):
    folder, seen = undisturbed
    times = Counter(map(tuple, itertools.chain(*seen)))
    assert {key: number for key, number in times.items() if key[0] == "train"} == {
        ("train", epoch, index): 1 for epoch in (0, 1) for index in range(TRAIN_PHOTOS)
    }
    assert Counter(index for split, _, index in times.elements() if split == "valid") == dict.fromkeys(
        range(VALID_PHOTOS), 2
    )  # once after each epoch
    decoded = [[name for kind, _, name in items if kind == "decoded"] for items in seen]
    assert sorted(decoded[0]) == sorted(path.name for path in cars.glob("car_ims/*"))
    assert decoded[1] == []
    assert [len(items) - len(names) for items, names in zip(seen, decoded, strict=True)] == [2 * (8 + 5), 2 * (7 + 4)]
    assert_validated(cars, folder)


def test_srun_on_two_machines_gives_the_same_run(cars, undisturbed, tmp_path, train_on_two):
    words = arguments(cars, tmp_path / "output", "devices=1", "num_nodes=2")
    codes, _ = train_on_two(words, environment=by_srun_on_two_machines)
    assert codes == [0, 0]
    assert_same_run(only(tmp_path / "output"), undisturbed[0])


def test_a_signal_to_one_process_ends_both_and_the_run_goes_on_as_the_same(cars, undisturbed, tmp_path, train_on_two):
    output = tmp_path / "output"
    codes, _ = train_on_two(arguments(cars, output, "devices=2"), fault=("signal", 1))  # of two steps in the epoch
    folder = only(output)
    assert codes == [128 + signal.SIGTERM, 0] and status(folder) == "interrupted"
    assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == 1
    copy = shutil.copytree(folder, tmp_path / "copies" / "copy")
    with pytest.raises(
        RunError, match=r"on 8 images a step .* would continue with 4 × 1 × 1 = 4; .* --set batch_size=8"
    ):
        train.main(["--resume", str(copy), "--set", "devices=1"])
    codes, _ = train_on_two(["--resume", "last", "--set", f"output_path={output}"])
    assert codes == [0, 0] and status(folder) == "completed"
    assert_same_run(folder, undisturbed[0])
    longer = ("--set", "num_epochs=3", "--set", "devices=2")
    codes, _ = train_on_two(["--resume", str(folder), *longer], others=["--resume", str(copy), *longer])
    assert codes == [1, 2] and len(rows(folder)) == 2  # they do not go on with different runs


def test_a_finished_epoch_resumed_on_one_device_needs_the_same_images_a_step(cars, undisturbed, tmp_path, capsys):
    folder = shutil.copytree(undisturbed[0], tmp_path / "output" / "run")
    words = ["--resume", str(folder), "--set", "num_epochs=3", "--set", "devices=1"]
    with pytest.raises(RunError, match=r"on 8 images a step \(batch_size × devices × num_nodes\) .*--set batch_size=8"):
        train.main(words)
    assert f"--resume {folder} --set batch_size=8\n" in capsys.readouterr().err
    assert len(rows(folder)) == 2
    train.main([*words, "--set", "batch_size=8"])
    assert len(rows(folder)) == 3


def test_a_loss_that_is_not_finite_in_one_process_ends_both(cars, tmp_path, train_on_two):
    codes, _ = train_on_two(arguments(cars, tmp_path, "devices=2"), fault=("loss", 2))
    folder = only(tmp_path)
    assert codes == [1, 0] and status(folder) == "failed"
    assert "not finite in epoch 1, step 2" in read_record(folder)["error"]


def test_no_step_has_one_image_or_waits_for_the_devices_of_others(cars, tmp_path, train_on_two):
    """Of 15 images, 4 a step, the last 3 join the step before: GhostNet has batch norm, which needs two a process."""
    codes, seen = train_on_two(arguments(cars, tmp_path, "devices=2", batch_size=2))
    assert codes == [0, 0]
    for each in seen:
        steps = " ".join(each["steps"])
        first, _, rest = steps.partition("train hosts train hosts ")  # each asks all processes for signals, on the host
        assert "train" not in first and rest.startswith("devices train "), steps  # the last step has uneven shares
        assert steps.count("valid hosts valid hosts") == 2, steps  # epochs
        assert steps.count("train") == 2 * 3 and steps.count("valid") == 2 * 2


def test_a_process_that_is_killed_ends_the_other_with_one_line(cars, tmp_path, train_on_two):
    codes, _ = train_on_two(arguments(cars, tmp_path, "devices=2"), fault=("kill", 3))
    folder = only(tmp_path)
    assert codes == [1, -signal.SIGKILL] and status(folder) == "failed"
    error = read_record(folder)["error"]
    assert error.startswith("RunError: another process of this training ended or cannot be reached"), error
    assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == 2


def test_processes_that_would_each_train_alone_are_refused(cars, tmp_path, train_on_two):
    codes, _ = train_on_two(arguments(cars, tmp_path / "output", "devices=1"))
    assert codes == [2, 2] and not (tmp_path / "output").exists()
