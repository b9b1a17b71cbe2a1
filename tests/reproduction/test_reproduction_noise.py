"""What counts as a difference, and whether an order came out the same."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from reproduction.batch_means import largest_difference, mean_of_batch_means
from reproduction.comparison import published_figures, published_spread
from reproduction.noise import Figure, Spread, allowed_difference, pooled_spread
from reproduction.order import order_of
from reproduction.published import (
    Group,
    read_published,
    read_sections,
)


def test_the_allowed_difference_is_the_stated_formula():
    from scipy.stats import t  # which the processes below, that import this file, do without

    spread = Spread(variance=0.49, degrees=3)
    first, second = Figure(82.5, 8041, 1, spread), Figure(83.8, 8041, 2, spread)
    binomial = 82.5 * 17.5 / 8041 + 83.8 * 16.2 / 8041
    seeds = 0.49 / 1 + 0.49 / 2
    degrees = (binomial + seeds) ** 2 / (seeds**2 / 3)
    expected = t.ppf(0.975, degrees) * math.sqrt(binomial + seeds)
    assert allowed_difference(first, second) == pytest.approx(expected, rel=1e-12)
    assert allowed_difference(first, second) > 1.3  # one run each cannot tell them apart

    other = Spread(variance=0.25, degrees=7)
    two = allowed_difference(first, replace(second, spread=other))
    seeds = [0.49, 0.125]
    degrees = (binomial + sum(seeds)) ** 2 / (seeds[0] ** 2 / 3 + seeds[1] ** 2 / 7)
    assert two == pytest.approx(t.ppf(0.975, degrees) * math.sqrt(binomial + sum(seeds)), rel=1e-12)

    none = Spread(variance=0.0, degrees=1)
    alone = allowed_difference(Figure(80.0, 8041, 1, none))
    assert alone == pytest.approx(1.959964 * 100 * math.sqrt(0.8 * 0.2 / 8041), rel=1e-6)
    assert allowed_difference(Figure(0.0, 10, 1, none), Figure(100.0, 10, 1, none)) == 0


def test_more_seeds_narrow_the_difference_down_to_that_of_the_photos():
    spread = Spread(1.0, 20)
    widths = [allowed_difference(*[Figure(80.0, 8041, runs, spread)] * 2) for runs in (1, 2, 4, 10**6)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(1.959964 * math.sqrt(2 * 80 * 20 / 8041), rel=1e-3)


def test_spreads():
    assert pooled_spread([[80.0], [70.0]]) is None
    spread = pooled_spread([[80.0, 82.0], [70.0], [60.0, 61.0, 65.0]])
    assert spread == Spread(pytest.approx((1 * 2.0 + 2 * 7.0) / 3), 3)
    assert published_spread(read_published()) == Spread(statistics.variance([74.6, 76.2, 75.14, 74.82]), 3)


def test_a_true_difference_is_seldom_missed_and_chance_seldom_taken_for_one():
    """Draws photos and seeds: at 95 %, at most one in twenty equal experiments may seem different."""
    generator, false, found = random.Random(0), 0, 0
    for _ in range(400):
        groups = []
        for true in (80.0, 80.0, 90.0):
            percent = generator.gauss(true, 100 * math.sqrt(0.8 * 0.2 / 1372))  # of these photos
            groups.append([generator.gauss(percent, 0.7) for _ in range(3)])
        spread = pooled_spread(groups)
        a, b, c = (Figure(statistics.mean(group), 1372, 3, spread) for group in groups)
        false += abs(a.percent - b.percent) > allowed_difference(a, b)
        found += abs(a.percent - c.percent) > allowed_difference(a, c)
    assert 4 <= false <= 32 and found == 400


def figures(**percents: float) -> dict[str, Figure]:
    return {name: Figure(percent, 8041, 3, Spread(0.25, 10)) for name, percent in percents.items()}


def test_only_what_is_inverted_beyond_chance_is_called_inverted():
    group = Group("g", ("a", "b", "c"))
    published = figures(a=60.0, b=70.0, c=70.5)

    same = order_of(group, published, figures(a=40.0, b=55.0, c=58.0))
    assert (same.tau, len(same.inverted)) == (1.0, 0)
    assert same.verdict == "same order; 2 of the 2 published differences beyond chance confirmed"

    within = order_of(group, published, figures(a=40.0, b=55.0, c=54.9))
    assert within.tau == pytest.approx(1 / 3) and not within.inverted
    assert within.verdict.startswith("not refuted: 1 of 3 pairs not in this order, within chance; 2 of the 2")

    far = order_of(group, published, figures(a=40.0, b=55.0, c=45.0))  # but the published difference is chance
    assert not far.inverted and far.pairs[2].measured_counts and not far.pairs[2].published_counts

    inverted = order_of(group, published, figures(a=60.0, b=55.0, c=66.0))
    assert [(pair.first, pair.second) for pair in inverted.inverted] == [("a", "b")]
    assert inverted.verdict == "inverted: a and b"

    tie = order_of(group, published, figures(a=50.0, b=50.0))
    assert tie.tau == 0 and tie.measured == 2 and tie.verdict.startswith("not refuted: 1 of 1 pairs not in this order")


def test_an_order_that_was_not_published_or_not_measured_is_not_judged():
    published = published_figures(read_published())
    right_boxes = next(section for section in read_sections() if section.name == "boxes").groups[1]
    measured = {name: Figure(50.0, 1372, 1, Spread(0.25, 10)) for name in right_boxes.experiments}
    assert order_of(right_boxes, published, measured).verdict == "no order was published"
    assert order_of(Group("g", ("C-1", "C-2")), published, {}).verdict == "not enough was measured"


def test_the_mean_of_batch_means_and_how_far_it_can_be_from_the_mean_over_images():
    correct = [True] * 3 + [False] + [True]
    assert mean_of_batch_means(correct, 4) == (0.75 + 1.0) / 2
    assert mean_of_batch_means(correct, 5) == mean_of_batch_means(correct, 8) == 0.8
    assert (
        100 * largest_difference(8041, 64)
        == pytest.approx(100 * (1 / 126 - 41 / 8041))
        == pytest.approx(0.28376, abs=1e-5)
    )
    assert largest_difference(8000, 64) == largest_difference(64, 64) == largest_difference(9, 64) == 0
    generator = random.Random(0)
    for images, batch_size in ((8041, 64), (1372, 64), (10, 3)):
        bound = largest_difference(images, batch_size)
        last = images % batch_size
        extreme = [False] * (images - last) + [True] * last  # all right in the last batch, all wrong in the others
        assert mean_of_batch_means(extreme, batch_size) - last / images == pytest.approx(bound, rel=1e-9)
        for _ in range(20):
            drawn = [generator.random() < 0.8 for _ in range(images)]
            assert abs(mean_of_batch_means(drawn, batch_size) - sum(drawn) / images) <= bound + 1e-12
