"""The pipelines: their order, their pixels, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from datamodules.transforms import build_transform, build_transforms, seen_box
from utils.errors import ConfigError
from utils.seeding import seeded

AUGMENTATIONS = {
    "RandomHorizontalFlip": {"p": 0.5},
    "RandomAffine": {"degrees": 25, "translate": [0.1, 0.1], "scale": [0.9, 1.1], "shear": 8},
    "ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1},
}
RGB = {"mean": [0.4707, 0.4602, 0.455], "std": [0.2594, 0.2585, 0.2635]}


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))


def names(pipeline) -> list[str]:
    return [type(step).__name__ for step in (*pipeline.resize.transforms, *pipeline.augment.transforms)]


def test_the_order_of_steps_is_the_studys():
    pipeline = build_transforms(
        image_size=[227, 227],
        convert_to_grayscale=True,
        image_augmentations=AUGMENTATIONS,
        tensor_augmentations={"RandomErasing": {"p": 0.5}},
        normalization={"mean": [0.5], "std": [0.2]},
    )
    assert names(pipeline) == [
        "Resize", "Grayscale", "RandomHorizontalFlip", "RandomAffine", "ColorJitter", "ToTensor", "RandomErasing", "Normalize",
    ]  # fmt: skip


def test_the_configured_order_is_kept():
    backwards = dict(reversed(AUGMENTATIONS.items()))
    assert names(build_transforms(image_size=[32, 32], image_augmentations=backwards))[1:4] == list(backwards)


def test_pixels_are_pils_bilinear_antialiased_resize_then_normalised(image):
    tensor = build_transforms(image_size=[24, 40], normalization=RGB)(image)
    pixels = np.asarray(image.resize((40, 24), Image.Resampling.BILINEAR), np.float32) / 255
    expected = (pixels - np.array(RGB["mean"], np.float32)) / np.array(RGB["std"], np.float32)
    torch.testing.assert_close(tensor, torch.from_numpy(expected).permute(2, 0, 1), rtol=1e-5, atol=1e-6)


def test_without_normalisation_the_tensor_is_in_0_to_1(image):
    tensor = build_transforms(image_size=[24, 40])(image)
    assert tensor.shape == (3, 24, 40) and 0 <= tensor.min() < 0.5 < tensor.max() <= 1


def test_gray_has_one_channel(image):
    tensor = build_transforms(image_size=[24, 40], convert_to_grayscale=True)(image)
    pixels = np.asarray(image.resize((40, 24), Image.Resampling.BILINEAR).convert("L"), np.float32) / 255
    torch.testing.assert_close(tensor[0], torch.from_numpy(pixels))


def test_augmentations_have_torchvisions_parameters_and_defaults():
    pipeline = build_transforms(image_size=[64, 64], image_augmentations=AUGMENTATIONS)
    affine = pipeline.augment.transforms[1]
    assert affine.interpolation == transforms.InterpolationMode.NEAREST and affine.fill == 0
    assert (affine.degrees, affine.shear) == ([-25.0, 25.0], [-8.0, 8.0])
    flip = build_transforms(image_size=[8, 8], image_augmentations={"RandomHorizontalFlip": None}).augment.transforms[0]
    assert flip.p == 0.5


def test_the_same_seed_draws_the_same_image_and_leaves_the_generator_alone(image):
    pipeline = build_transforms(image_size=[64, 64], image_augmentations=AUGMENTATIONS)
    state = torch.get_rng_state()
    made = []
    for numbers in ((0, "photo", 3, 5), (0, "photo", 3, 5), (0, "photo", 3, 6), (0, "photo", 4, 5), (1, "photo", 3, 5)):
        with seeded(*numbers):
            made.append(pipeline(image))
    assert torch.equal(made[0], made[1])
    assert all(not torch.equal(made[0], other) for other in made[2:])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("augmentations", "message"),
    [
        (
            {"CenterCrop": {"size": 8}},
            r"turn an image into torch.float32 \(3, 8, 8\); expected torch.float32 \(3, 32, 32\)",
        ),
        ({"RandomGrayscale": {"p": 1.0}, "Grayscale": {}}, r"\(1, 32, 32\)"),
        ({"RandomAffine": {"degrees": -5}}, "RandomAffine: If degrees is a single number, it must be positive"),
        ({"RandomRotation": {"degrees": 5, "interpolation": "cubic"}}, "'cubic' is not a valid InterpolationMode"),
    ],
)
def test_what_does_not_fit_is_refused(augmentations, message):
    with pytest.raises(ConfigError, match=message):
        build_transforms(image_size=[32, 32], image_augmentations=augmentations)


def test_enumerations_are_given_by_their_values():
    rotation = build_transform("RandomRotation", {"degrees": 30, "interpolation": "bilinear"})
    assert rotation.interpolation is transforms.InterpolationMode.BILINEAR
    augment = build_transform("AutoAugment", {"policy": "svhn", "interpolation": "bilinear"})
    assert augment.policy is transforms.AutoAugmentPolicy.SVHN
    pad = build_transform("Pad", {"padding": 2, "padding_mode": "reflect"})  # text that is not an enumeration
    assert pad.padding_mode == "reflect"


WIDE, TALL = (90, 60), (61, 90)  # width and height


@pytest.mark.parametrize(
    ("size", "aspect", "box"),
    [
        (WIDE, "squash", (0, 0, 90, 60)),
        (WIDE, "crop", (15, 0, 75, 60)),  # to 40 × 40
        (TALL, "crop", (0, 14, 61, 75)),
        (WIDE, "pad", (0, -60 * 6 / 27, 90, 60 * 34 / 27)),  # 40 × 27: 6 rows above, 7 below
        (TALL, "pad", (-61 * 6 / 27, 0, 61 * 34 / 27, 90)),
    ],
)
def test_the_aspect_ratio_is_squashed_cropped_or_padded(size, aspect, box):
    image = Image.fromarray(np.random.default_rng(0).integers(1, 256, (*size[::-1], 3), np.uint8))
    resized = build_transforms(image_size=[40, 40], aspect=aspect).resize(image)
    assert seen_box(size, (40, 40), aspect) == pytest.approx(box)
    if aspect == "pad":
        x, y = (0, 6) if size == WIDE else (6, 0)
        inner = (40, 27) if size == WIDE else (27, 40)
        expected = Image.new("RGB", (40, 40))
        expected.paste(image.resize(inner, Image.Resampling.BILINEAR), (x, y))
    else:
        expected = image.crop(tuple(map(int, box))).resize((40, 40), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(resized), np.asarray(expected))


def test_augmentations_take_the_images_from_larger_ones(image):
    crop = {"RandomCrop": {"size": [24, 40]}}
    pipeline = build_transforms(image_size=[24, 40], resize_size=[32, 48], image_augmentations=crop)
    larger = build_transforms(image_size=[32, 48])(image)
    with seeded(1):
        tensor = pipeline(image)
    with seeded(1):
        top, left, height, width = transforms.RandomCrop.get_params(larger, (24, 40))
    assert torch.equal(tensor, larger[:, top : top + height, left : left + width])
    with pytest.raises(ConfigError, match=r"\(3, 32, 48\); expected torch.float32 \(3, 24, 40\); RandomResizedCrop or"):
        build_transforms(image_size=[24, 40], resize_size=[32, 48])
