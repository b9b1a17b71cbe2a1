"""The order of photos: every photo once an epoch, an order for each (seed, epoch), never a lone image."""

import itertools

import pytest

from datamodules.sampler import EpochBatchSampler


def epoch_of(batches: EpochBatchSampler, epoch: int = 0) -> list[list[int]]:
    batches.set_epoch(epoch)
    made = list(batches)
    assert {each for batch in made for each, _ in batch} <= {epoch}
    assert len(made) == len(batches)
    return [[index for _, index in batch] for batch in made]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("count", [2, 16, 17, 63, 64, 65, 129, 200])
def test_every_photo_once_and_the_last_partial_batch_kept(count, shuffle):
    made = epoch_of(EpochBatchSampler(count, 16, shuffle=shuffle))
    assert sorted(itertools.chain(*made)) == list(range(count))
    assert all(len(batch) == 16 for batch in made[:-1])


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


@pytest.mark.parametrize("count", [31, 32, 33, 34, 35, 64, 100])
def test_processes_share_each_batch_without_repeating_a_photo(count):
    whole = epoch_of(EpochBatchSampler(count, 32, shuffle=True), 2)
    parts = [epoch_of(EpochBatchSampler(count, 16, shuffle=True, rank=rank, world_size=2), 2) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1])  # both take every step
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(first + second) == sorted(batch)
        assert abs(len(first) - len(second)) <= 1 and first and second
