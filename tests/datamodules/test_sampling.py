"""The order of the images: each image once an epoch, an order for each (seed, epoch), never a training batch of one."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.sampler import EpochBatchSampler
from tests.support.hostile import examples
from utils.errors import DataError
from utils.seeding import mix, seeded


def epoch_of(batches: EpochBatchSampler, epoch: int = 0) -> list[list[int]]:
    batches.set_epoch(epoch)
    made = list(batches)
    assert {each for batch in made for each, _ in batch} <= {epoch}
    assert len(made) == len(batches)
    return [[index for _, index in batch] for batch in made]


def test_the_study_trained_on_a_last_batch_of_16():
    sizes = [len(batch) for batch in epoch_of(EpochBatchSampler(8144, 64, shuffle=True))]
    assert sizes == [64] * 127 + [16]


def test_a_lone_training_image_joins_the_batch_before_it_and_a_lone_validation_image_does_not():
    assert [len(batch) for batch in epoch_of(EpochBatchSampler(33, 16, shuffle=True))] == [16, 17]
    assert [len(batch) for batch in epoch_of(EpochBatchSampler(33, 16, shuffle=False))] == [16, 16, 1]


def test_order_depends_on_seed_and_epoch_alone():
    orders = [
        tuple(itertools.chain(*epoch_of(EpochBatchSampler(50, 8, shuffle=True, seed=s), e)))
        for s in (0, 1)
        for e in (0, 1)
    ]
    assert len(set(orders)) == 4
    batches = EpochBatchSampler(50, 8, shuffle=True, seed=0)
    assert tuple(itertools.chain(*epoch_of(batches, 1))) == orders[1]
    assert tuple(itertools.chain(*epoch_of(batches, 0))) == orders[0]  # whatever came before
    assert list(itertools.chain(*epoch_of(EpochBatchSampler(50, 8, shuffle=False)))) == list(range(50))


def test_an_epoch_that_goes_on_in_its_middle_has_the_rest_of_its_batches_once():
    batches = EpochBatchSampler(50, 8, shuffle=True)
    whole = epoch_of(batches, 3)
    batches.first_batch = 4
    assert [[index for _, index in batch] for batch in batches] == whole[4:]
    assert epoch_of(batches, 3) == whole


@examples(100)
@given(
    count=st.integers(0, 300),
    batch_size=st.integers(2, 17),
    world_size=st.integers(1, 9),
    shuffle=st.booleans(),
)
def test_processes_share_every_image_and_none_trains_on_a_batch_of_one(count, batch_size, world_size, shuffle):
    least = 2 if shuffle else 1

    def share(rank: int) -> list[list[int]]:
        return epoch_of(EpochBatchSampler(count, batch_size, shuffle=shuffle, rank=rank, world_size=world_size), 2)

    if count < least * world_size:
        with pytest.raises(DataError, match=f"too few for {world_size} .*expected at least {least * world_size}"):
            share(0)
        return
    shares = [share(rank) for rank in range(world_size)]
    sizes = [[len(batch) for batch in batches] for batches in zip(*shares, strict=True)]  # all take every step
    assert sorted(itertools.chain(*itertools.chain(*shares))) == list(range(count))
    assert all(min(step) >= least and max(step) - min(step) <= 1 for step in sizes)
    assert all(step == [batch_size] * world_size for step in sizes[:-1])
    assert max(sizes[-1]) <= batch_size + least
    # As one process would with all of their images, but for a last batch that only one process can train on.
    whole = epoch_of(EpochBatchSampler(count, batch_size * world_size, shuffle=shuffle), 2)
    for batch, *parts in zip(whole[: len(sizes) - 1], *shares, strict=False):
        assert sorted(itertools.chain(*parts)) == sorted(batch)


def test_balanced_classes_have_equal_chances_and_repeats_draw_other_numbers():
    labels = [0] * 900 + [1] * 90 + [2] * 10
    balanced = EpochBatchSampler(1000, 16, shuffle=True, labels=labels)
    draws = list(itertools.chain(*epoch_of(balanced, 1)))
    assert len(draws) == 1000 == len(set(draws))  # a repeat is another draw of the same image
    drawn = Counter(labels[draw % 1000] for draw in draws)
    assert all(abs(drawn[label] - 1000 / 3) < 5 * (1000 * 2 / 9) ** 0.5 for label in range(3))  # 5 standard deviations
    for image in range(1000):
        repeats = sorted(draw // 1000 for draw in draws if draw % 1000 == image)
        assert repeats == list(range(len(repeats)))
    whole = epoch_of(balanced, 3)
    assert epoch_of(balanced, 2) != whole
    balanced.first_batch = 20
    balanced.set_epoch(3)
    assert [[draw for _, draw in batch] for batch in balanced] == whole[20:]
    shares = [
        epoch_of(EpochBatchSampler(1000, 8, shuffle=True, labels=labels, rank=rank, world_size=2), 3) for rank in (0, 1)
    ]
    assert [sorted(one + other) for one, other in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]


def test_the_draws_are_those_of_every_published_run():
    """Runs are repeated and resumed by later versions: another word, order or hash changes all of them."""
    assert mix(0, "order", 1) == 2002067703672271585
    assert epoch_of(EpochBatchSampler(50, 8, shuffle=True, seed=0), 1)[0] == [44, 34, 9, 20, 19, 15, 4, 26]
    with seeded(0, "photo", 1, 0):
        assert torch.rand(1).item() == pytest.approx(0.2748490571975708)
