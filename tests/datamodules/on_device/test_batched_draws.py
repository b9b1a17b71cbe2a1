"""The random draws of batched augmentations against torchvision's own, many of both, at fixed seeds.

With several dozen tests at fixed seeds the line is drawn at a probability of 0.001; a wrong distribution lies far beyond it.
"""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms
from torchvision.transforms import autoaugment

from datamodules.on_device.augmentations import BATCHED, BatchedAugmentations
from datamodules.transforms import build_transforms

AFFINE = {"degrees": 25, "translate": [0.1, 0.1], "scale": [0.9, 1.1], "shear": 8}
JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
SIZE = (45, 62)
OURS, THEIRS = 20_000, 2_000


def sampled(name, parameters, size):
    step = BATCHED[name](getattr(transforms, name)(**parameters), size, 1.0)
    numbers = torch.rand(OURS, step.num_random, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return step.sample(numbers)


def torchvision_draws(draw_one):
    torch.manual_seed(7)
    return np.array([draw_one() for _ in range(THEIRS)], dtype=np.float64)


def assert_same_continuous(ours, theirs):
    assert stats.ks_2samp(np.asarray(ours), theirs).pvalue > 0.001


def assert_same_categories(ours, theirs):
    """Chi-square of two tables of whole numbers (samples, columns), whole rows as categories, rare ones together."""
    assert (ours == ours.round()).all()
    both = np.concatenate([np.asarray(ours).reshape(len(ours), -1), theirs.reshape(len(theirs), -1)])
    _, category = np.unique(both, axis=0, return_inverse=True)
    category = category.ravel()
    counts = np.stack([np.bincount(part, minlength=category.max() + 1) for part in np.split(category, [len(ours)])])
    rare = counts.sum(0) * len(theirs) / len(both) < 5
    table = np.concatenate([counts[:, ~rare], counts[:, rare].sum(1, keepdims=True)], 1)
    table = table[:, table.sum(0) > 0]
    assert table.shape[1] > 1
    assert stats.chi2_contingency(table).pvalue > 0.001


def assert_same_rectangles(ours, theirs):
    """All pairs of top, left, height and width; whole rectangles are too many to count."""
    for pair in combinations(range(4), 2):
        assert_same_categories(ours[:, pair], theirs[:, pair])


def assert_independent(columns):
    """Rank correlations of 20,000 samples have a standard deviation of 0.007."""
    correlations = np.corrcoef([stats.rankdata(column) for column in columns])
    assert np.abs(correlations - np.eye(len(columns))).max() < 0.035


def test_affine_draws():
    parameters = AFFINE | {"shear": [-8, 8, -3, 5]}
    ours = sampled("RandomAffine", parameters, (20, 40))
    transform = transforms.RandomAffine(**parameters)
    ranges = (transform.degrees, transform.translate, transform.scale, transform.shear, [40, 20])

    def one():
        angle, translate, scale, shear = transform.get_params(*ranges)
        return [angle, *translate, scale, *shear]

    theirs = torchvision_draws(one)
    assert_same_continuous(ours["angle"], theirs[:, 0])
    assert_same_categories(ours["translate"], theirs[:, 1:3])
    assert_same_continuous(ours["scale"], theirs[:, 3])
    assert_same_continuous(ours["shear"][:, 0], theirs[:, 4])
    assert_same_continuous(ours["shear"][:, 1], theirs[:, 5])
    assert_independent([ours["angle"], *ours["translate"].T, ours["scale"], *ours["shear"].T])


def test_rotation_draws():
    ours = sampled("RandomRotation", {"degrees": [-10, 30]}, SIZE)
    theirs = torchvision_draws(lambda: transforms.RandomRotation.get_params([-10, 30]))
    assert_same_continuous(ours["angle"], theirs)


def test_perspective_draws():
    ours = sampled("RandomPerspective", {"distortion_scale": 0.6}, (11, 16))["endpoints"].flatten(1)
    get_params = transforms.RandomPerspective.get_params
    theirs = torchvision_draws(lambda: np.ravel(get_params(16, 11, 0.6)[1]))
    assert ours.shape == (OURS, 8)
    for column in range(8):
        assert_same_categories(ours[:, column], theirs[:, column])
    assert_same_categories(ours[:, :4], theirs[:, :4])
    assert_independent(list(ours.T))


@pytest.mark.parametrize(
    ("size", "limits"),
    [
        ((7, 9), {}),
        ((7, 12), {"scale": [0.6, 1.0], "ratio": [0.8, 1.2]}),
        ((6, 14), {"scale": [0.3, 1.0], "ratio": [0.5, 1.2]}),
        ((14, 6), {"scale": [0.3, 1.0], "ratio": [0.8, 2.0]}),
        ((8, 8), {"scale": [0.97, 1.0], "ratio": [0.7, 1.4]}),
    ],
    ids=["default", "C-46", "often no try fits a wide image", "a tall one", "the whole image"],
)
def test_resized_crop_draws(size, limits):
    ours = sampled("RandomResizedCrop", {"size": 5, **limits}, size)
    transform, image = transforms.RandomResizedCrop(5, **limits), torch.empty(3, *size)
    theirs = torchvision_draws(lambda: transform.get_params(image, transform.scale, transform.ratio))
    assert_same_rectangles(torch.stack([ours[side] for side in ("top", "left", "height", "width")], 1), theirs)


def test_resized_crop_without_any_fit_is_central():
    for size, ratio, expected in (((6, 30), [1.0, 2.0], [0, 9, 6, 12]), ((30, 6), [0.5, 1.0], [9, 0, 12, 6])):
        ours = sampled("RandomResizedCrop", {"size": 5, "scale": [0.9, 1.0], "ratio": ratio}, size)
        made = torch.stack([ours[side] for side in ("top", "left", "height", "width")], 1)
        assert (made == torch.tensor(expected)).all()
        theirs = transforms.RandomResizedCrop.get_params(torch.empty(3, *size), [0.9, 1.0], ratio)
        assert list(theirs) == expected


@pytest.mark.parametrize(
    ("size", "limits"),
    [((9, 7), {}), ((12, 16), {"scale": [0.02, 0.25]}), ((6, 9), {"scale": [0.5, 1.0], "ratio": [0.5, 1.5]})],
    ids=["default", "C-5", "often no try fits"],
)
def test_erasing_draws(size, limits):
    ours = sampled("RandomErasing", limits, size)
    transform, image = transforms.RandomErasing(**limits), torch.empty(3, *size)

    def one():
        top, left, height, width, _ = transform.get_params(image, transform.scale, transform.ratio, [0.0])
        return [0, 0, 0, 0] if (height, width) == size else [top, left, height, width]

    drawn = torch.stack([ours[side] for side in ("top", "left", "height", "width")], 1)
    drawn[(ours["height"] == 0) & (ours["width"] == 0)] = 0
    assert_same_rectangles(drawn, torchvision_draws(one))
    for side in ("top", "left", "height", "width"):
        assert_independent([ours["seed"], ours[side]])
    assert len(ours["seed"].unique()) > 0.99 * OURS


@pytest.mark.parametrize("name", ["TrivialAugmentWide", "RandAugment"])
def test_automatic_draws(name, monkeypatch):
    """The operations and their magnitudes; RandAugment draws the second as the first."""
    seen = []
    monkeypatch.setattr(
        autoaugment, "_apply_op", lambda image, op, magnitude, **_: seen.append((op, magnitude)) or image
    )
    transform, image = getattr(transforms, name)(), torch.zeros(3, *SIZE, dtype=torch.uint8)
    torch.manual_seed(7)
    for _ in range(THEIRS):
        transform(image)
    step = BATCHED[name](transform, SIZE, 255.0)
    numbers = torch.rand(OURS, step.num_random, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ours = step.sample(numbers)
    theirs = np.array([(step.names.index(op), magnitude) for op, magnitude in seen]).reshape(THEIRS, -1, 2)
    for place in range(theirs.shape[1]):
        assert_same_categories(ours["op"][:, place], theirs[:, place, 0])
        for op, label in enumerate(step.names):
            mine, others = (
                ours["magnitude"][ours["op"][:, place] == op, place],
                theirs[theirs[:, place, 0] == op, place, 1],
            )
            assert set(others) <= set(mine.tolist()), label
            assert_same_continuous(mine, others)
    if name == "RandAugment":
        assert_independent(list(ours["op"].T))


def test_jitter_draws():
    ours = sampled("ColorJitter", JITTER, SIZE)
    transform = transforms.ColorJitter(**JITTER)

    def one():
        order, *factors = transform.get_params(
            transform.brightness, transform.contrast, transform.saturation, transform.hue
        )
        return [*order.tolist(), *factors]

    theirs = torchvision_draws(one)
    assert_same_categories(ours["order"], theirs[:, :4])
    for column, name in enumerate(JITTER):
        assert_same_continuous(ours[name], theirs[:, 4 + column])
    assert_independent([ours["order"][:, 0], *(ours[name] for name in JITTER)])


def test_jitter_order_of_two():
    """Of four shuffled steps, of which two do nothing, the other two come in either order equally often."""
    ours = sampled("ColorJitter", {"contrast": 0.1, "hue": 0.1}, SIZE)["order"]
    theirs = torchvision_draws(lambda: [step for step in torch.randperm(4).tolist() if step in (1, 3)])
    assert_same_categories(ours * 2 + 1, theirs)


@pytest.mark.parametrize("name", ["RandomHorizontalFlip", "RandomVerticalFlip", "RandomGrayscale", "RandomPerspective"])
def test_probabilities(name):
    """The chance of being applied, and that the steps of a chain are drawn apart from each other."""
    chain = {name: {"p": 0.3}, "ColorJitter": JITTER}
    erasing = {"RandomErasing": {"p": 0.6}}
    augmentations = BatchedAugmentations(chain, erasing, image_size=SIZE, mean=None, std=None)
    rows = augmentations.draw(OURS, torch.Generator().manual_seed(11))
    first, erased = rows[:, 0], rows[:, sum(augmentations.columns[:2])]
    assert stats.binomtest(int(first.sum()), OURS, 0.3).pvalue > 0.001
    assert stats.binomtest(int(erased.sum()), OURS, 0.6).pvalue > 0.001
    assert_independent([first, erased, rows[:, augmentations.columns[0] + 19]])


def test_images_by_themselves_and_in_batches_have_the_same_distribution():
    """The whole way from a larger image to the model's, by some figures of the results."""
    settings = {
        "RandomResizedCrop": {"size": [20, 24], "scale": [0.3, 1.0]}, "RandomHorizontalFlip": {}, "TrivialAugmentWide": {},
    }  # fmt: skip
    erasing, size, draws = {"RandomErasing": {"p": 0.5}}, (30, 36), 400
    y, x = torch.meshgrid(torch.linspace(20, 230, size[0]), torch.linspace(0, 160, size[1]), indexing="ij")
    image = torch.stack([y, x, (y + x) / 2]).to(torch.uint8)
    pipeline = build_transforms(
        image_size=[20, 24], resize_size=size, image_augmentations=settings, tensor_augmentations=erasing
    )
    torch.manual_seed(1)
    alone = torch.stack([pipeline.augment(transforms.functional.to_pil_image(image)) for _ in range(draws)])
    batched = BatchedAugmentations(settings, erasing, image_size=size, mean=None, std=None)
    rows = batched.draw(draws, torch.Generator().manual_seed(2))
    together = batched(image.expand(draws, -1, -1, -1).contiguous(), rows)
    for figure in (
        lambda images: images.mean((1, 2, 3)),
        lambda images: images.std((1, 2, 3)),
        lambda images: images[:, 0, 10, 12],
        lambda images: (images[:, 1, :, -5:] - images[:, 1, :, :5]).mean((1, 2)),  # left and right
        lambda images: (images[:, 0, -5:] - images[:, 0, :5]).mean((1, 2)),  # above and below
    ):
        # Within a level: per image, Pillow rounds to 8 bits after each step.
        ours, theirs = (figure(images).mul(128).round() for images in (together, alone))
        assert_same_continuous(ours, theirs.numpy())
