"""Which differences are significant, and whether an order held."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from reproduction.comparison import (
    Accuracy,
    Spread,
    margin_of_error,
    order_of,
    pooled_spread,
    published_accuracies,
    published_spread,
)
from reproduction.evaluation import max_difference, mean_of_batch_means
from reproduction.published import Group, read_published, read_sections


def test_the_margin_of_error_is_the_stated_formula():
    from scipy.stats import t

    spread = Spread(variance=0.49, degrees=3)
    first, second = Accuracy(82.5, 8041, 1, spread), Accuracy(83.8, 8041, 2, spread)
    binomial = 82.5 * 17.5 / 8041 + 83.8 * 16.2 / 8041
    seeds = 0.49 / 1 + 0.49 / 2
    degrees = (binomial + seeds) ** 2 / (seeds**2 / 3)
    expected = t.ppf(0.975, degrees) * math.sqrt(binomial + seeds)
    assert margin_of_error(first, second) == pytest.approx(expected, rel=1e-12)
    assert margin_of_error(first, second) > 1.3  # one run each cannot tell them apart

    other = Spread(variance=0.25, degrees=7)
    two = margin_of_error(first, replace(second, spread=other))
    seeds = [0.49, 0.125]
    degrees = (binomial + sum(seeds)) ** 2 / (seeds[0] ** 2 / 3 + seeds[1] ** 2 / 7)
    assert two == pytest.approx(t.ppf(0.975, degrees) * math.sqrt(binomial + sum(seeds)), rel=1e-12)

    none = Spread(variance=0.0, degrees=1)
    alone = margin_of_error(Accuracy(80.0, 8041, 1, none))
    assert alone == pytest.approx(1.959964 * 100 * math.sqrt(0.8 * 0.2 / 8041), rel=1e-6)
    assert margin_of_error(Accuracy(0.0, 10, 1, none), Accuracy(100.0, 10, 1, none)) == 0


def test_more_seeds_narrow_the_margin_down_to_that_of_the_images():
    spread = Spread(1.0, 20)
    widths = [margin_of_error(*[Accuracy(80.0, 8041, runs, spread)] * 2) for runs in (1, 2, 4, 10**6)]
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
        a, b, c = (Accuracy(statistics.mean(group), 1372, 3, spread) for group in groups)
        false += abs(a.percent - b.percent) > margin_of_error(a, b)
        found += abs(a.percent - c.percent) > margin_of_error(a, c)
    assert 4 <= false <= 32 and found == 400


def accuracies(**percents: float) -> dict[str, Accuracy]:
    return {name: Accuracy(percent, 8041, 3, Spread(0.25, 10)) for name, percent in percents.items()}


def test_only_a_significant_reversal_is_called_reversed():
    group = Group("g", ("a", "b", "c"))
    published = accuracies(a=60.0, b=70.0, c=70.5)

    same = order_of(group, published, accuracies(a=40.0, b=55.0, c=58.0))
    assert same.tau == 1.0
    assert same.verdict == "same order; 2 of 2 significant published differences confirmed"

    within = order_of(group, published, accuracies(a=40.0, b=55.0, c=54.9))
    assert within.tau == pytest.approx(1 / 3)
    assert within.verdict.startswith("not contradicted, 1 of 3 pairs differ within chance; 2 of 2")

    far = order_of(group, published, accuracies(a=40.0, b=55.0, c=45.0))  # but the published difference is chance
    assert far.verdict.startswith("not contradicted")
    assert far.pairs[2].measured.is_significant and not far.pairs[2].published.is_significant

    backwards = order_of(group, published, accuracies(a=60.0, b=55.0, c=66.0))
    assert backwards.verdict == "reversed: a and b"

    tie = order_of(group, published, accuracies(a=50.0, b=50.0))
    assert tie.tau == 0 and tie.measured == 2 and tie.verdict.startswith("not contradicted, 1 of 1 pairs")


def test_an_order_that_was_not_published_or_not_measured_is_not_judged():
    published = published_accuracies(read_published())
    right_boxes = next(section for section in read_sections() if section.name == "boxes").groups[1]
    measured = {name: Accuracy(50.0, 1372, 1, Spread(0.25, 10)) for name in right_boxes.experiments}
    assert order_of(right_boxes, published, measured).verdict == "no order was published"
    assert order_of(Group("g", ("C-1", "C-2")), published, {}).verdict == "too few variants measured"


def test_the_mean_of_batch_means_and_how_far_it_can_be_from_the_mean_over_images():
    correct = [True] * 3 + [False] + [True]
    assert mean_of_batch_means(correct, 4) == (0.75 + 1.0) / 2
    assert mean_of_batch_means(correct, 5) == mean_of_batch_means(correct, 8) == 0.8
    assert (
        100 * max_difference(8041, 64) == pytest.approx(100 * (1 / 126 - 41 / 8041)) == pytest.approx(0.28376, abs=1e-5)
    )
    assert max_difference(8000, 64) == max_difference(64, 64) == max_difference(9, 64) == 0
    generator = random.Random(0)
    for images, batch_size in ((8041, 64), (1372, 64), (10, 3)):
        bound = max_difference(images, batch_size)
        last = images % batch_size
        extreme = [False] * (images - last) + [True] * last  # all right in the last batch, all wrong in the others
        assert mean_of_batch_means(extreme, batch_size) - last / images == pytest.approx(bound, rel=1e-9)
        for _ in range(20):
            drawn = [generator.random() < 0.8 for _ in range(images)]
            assert abs(mean_of_batch_means(drawn, batch_size) - sum(drawn) / images) <= bound + 1e-12
