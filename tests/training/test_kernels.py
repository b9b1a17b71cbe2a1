"""cuDNN tries its kernels for full training batches, and for no others."""

import pytest
import torch
from pytorch_lightning import Callback

import assembly
from tests.support.small_runs import run


class Flags(Callback):
    def __init__(self) -> None:
        self.training: list[tuple[int, bool]] = []
        self.validation: list[bool] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.training.append((len(batch[1]), torch.backends.cudnn.benchmark))

    def on_validation_batch_end(self, *_) -> None:
        self.validation.append(torch.backends.cudnn.benchmark)


@pytest.mark.parametrize(
    ("changes", "training"),
    [
        (["batch_size=8", "deterministic=True"], [(8, False), (8, False), (4, False)]),
        (["batch_size=8"], [(8, True), (8, True), (4, False)]),  # last, as the Trainer leaves deterministic on
        (["batch_size=10"], [(10, True), (10, True)]),
    ],
)
def test_cudnn_tries_its_kernels_for_full_batches_unless_the_same_ones_are_wanted(
    cars, tmp_path, monkeypatch, changes, training
):
    flags, original = Flags(), assembly.build_callbacks
    monkeypatch.setattr(assembly, "build_callbacks", lambda *a, **k: [*original(*a, **k), flags])
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # as another program may have left it
        run(cars, tmp_path, "num_epochs=2", *changes)
    assert flags.training == training * 2
    assert flags.validation and not any(flags.validation)
