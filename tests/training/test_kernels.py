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


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_tries_its_kernels_for_full_batches_unless_the_same_ones_are_wanted(
    cars, tmp_path, monkeypatch, deterministic
):
    flags, original = Flags(), assembly.build_callbacks
    monkeypatch.setattr(assembly, "build_callbacks", lambda *a, **k: [*original(*a, **k), flags])
    with torch.backends.cudnn.flags(benchmark=True):  # as another program may have left it
        run(cars, tmp_path, "num_epochs=2", f"deterministic={deterministic}")
        assert not torch.backends.cudnn.benchmark
    assert flags.training == [(8, not deterministic), (8, not deterministic), (4, False)] * 2
    assert len(flags.validation) == 2 and not any(flags.validation)
