"""mixup and CutMix by their formulas, and what their random numbers depend on."""

import pytest
import torch

from datamodules.mixing import Mixing
from losses import build_loss, mean_loss, require_probabilities
from utils.errors import ConfigError

IMAGES = torch.randn(9, 3, 24, 20, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 1])
OTHERS, OTHER_LABELS = IMAGES.roll(1, 0), LABELS.roll(1, 0)  # each image's partner


def mixing(**settings) -> Mixing:
    return Mixing(4, **({"mixup_alpha": None, "cutmix_alpha": None} | settings))


def share_of(targets: torch.Tensor) -> float:
    """Returns the own label's share, and checks that all images have it."""
    (number,) = {
        round(float(row[own]), 6) for row, own, other in zip(targets, LABELS, OTHER_LABELS, strict=True) if own != other
    }
    one_hot = torch.eye(4)
    torch.testing.assert_close(targets, number * one_hot[LABELS] + (1 - number) * one_hot[OTHER_LABELS])
    return number


def test_mixup_is_the_weighted_mean_of_images_and_labels():
    shares = []
    for step in range(120):
        images, targets = mixing(mixup_alpha=0.5)(IMAGES, LABELS, step)
        shares.append(share := share_of(targets))
        torch.testing.assert_close(images, share * IMAGES + (1 - share) * OTHERS, atol=2e-5, rtol=1e-4)
    # Beta(0.5, 0.5): mean 1/2, variance 1/8.
    assert torch.tensor(shares).mean() == pytest.approx(0.5, abs=0.08)
    assert torch.tensor(shares).var() == pytest.approx(0.125, abs=0.03)


def test_cutmix_pastes_one_rectangle_and_shares_labels_by_its_area():
    areas = set()
    for step in range(20):
        images, targets = mixing(cutmix_alpha=1.0)(IMAGES, LABELS, step)
        pasted = (images != IMAGES).any(1).all(0)
        assert torch.equal(images, torch.where(pasted, OTHERS, IMAGES))
        rows, columns = pasted.any(1), pasted.any(0)
        assert torch.equal(pasted, rows[:, None] & columns) and (rows.int().diff() != 0).sum() <= 2
        assert share_of(targets) == pytest.approx(1 - pasted.float().mean().item(), abs=1e-5)
        areas.add(int(pasted.sum()))
    assert len(areas) > 10


def test_the_numbers_depend_on_seed_and_step_alone_and_both_kinds_come_as_often():
    both, state = mixing(mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.6, seed=3), torch.get_rng_state()
    kinds = []
    for step in range(80):
        images, targets = both(IMAGES, LABELS, step)
        again, _ = mixing(mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.6, seed=3)(IMAGES, LABELS, step)
        assert torch.equal(images, again)
        if not targets.is_floating_point():
            assert images is IMAGES and targets is LABELS
            kinds.append("none")
        else:
            kinds.append("cutmix" if torch.isin(images, IMAGES).all() else "mixup")
    assert torch.equal(torch.get_rng_state(), state)
    assert [kinds.count(kind) / 80 for kind in ("none", "mixup", "cutmix")] == pytest.approx([0.4, 0.3, 0.3], abs=0.15)
    assert not torch.equal(both(IMAGES, LABELS, 1)[0], both(IMAGES, LABELS, 2)[0])


def test_the_last_epochs_are_not_mixed():
    assert [mixing(mixup_alpha=1.0, off_epochs=2).is_on(epoch, 5) for epoch in range(5)] == [True] * 3 + [False] * 2


def test_one_class_cannot_be_mixed():
    with pytest.raises(ConfigError, match="the data set has 1"):
        Mixing(1, mixup_alpha=0.2, cutmix_alpha=None)


@pytest.mark.parametrize(
    "params", [{}, {"weight": [1.0, 5.0, 0.2, 2.0]}, {"weight": [1.0, 5.0, 0.2, 2.0], "reduction": "sum"}]
)
@pytest.mark.parametrize("name", ["CrossEntropyLoss", "LabelSmoothingCrossEntropy"])
def test_the_loss_of_mixed_images_is_that_of_both_labels_in_their_shares(name, params):
    loss, logits = (
        build_loss(name, params, num_classes=4),
        torch.randn(9, 4, generator=torch.Generator().manual_seed(1)),
    )
    _, targets = mixing(mixup_alpha=1.0)(IMAGES, LABELS, 5)
    share = share_of(targets)
    value, denominator = mean_loss(loss, logits, targets)
    expected = share * loss(logits, LABELS) + (1 - share) * loss(logits, OTHER_LABELS)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        denominator, mean_loss(loss, logits, LABELS)[1]
    )  # so that batches of both kinds weigh the same


@pytest.mark.parametrize(
    ("name", "params"), [("MultiMarginLoss", {}), ("NLLLoss", {}), ("CrossEntropyLoss", {"ignore_index": 0})]
)
def test_a_loss_without_probabilities_is_refused(name, params):
    with pytest.raises(ConfigError, match=f"probabilities in place of labels, which {name} does not take"):
        require_probabilities(build_loss(name, params, num_classes=4), 4)


def test_mixing_asks_the_device_for_no_number():
    """Tensors on the meta device have no values."""
    for settings in ({"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}):
        images, targets = mixing(**settings)(IMAGES.to("meta"), LABELS.to("meta"), 3)
        assert images.shape == IMAGES.shape and targets.shape == (9, 4)
