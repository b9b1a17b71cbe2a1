"""Batched augmentations against torchvision's own functionals, draw for draw, and against its distributions."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import transforms
from torchvision.transforms import InterpolationMode, autoaugment
from torchvision.transforms import functional as reference

from datamodules.on_device.augmentations import BatchedAugmentations, unsupported_augmentations
from datamodules.on_device.draws import is_zero
from datamodules.on_device.rectangles import normal_noise
from utils.errors import ConfigError

AFFINE = {"degrees": 25, "translate": [0.1, 0.1], "scale": [0.9, 1.1], "shear": 8}
JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
C_50 = {"RandomHorizontalFlip": {"p": 0.5}, "RandomAffine": AFFINE, "ColorJitter": JITTER}
MEAN, STD = [0.4707, 0.4602, 0.455], [0.2594, 0.2585, 0.2635]
SIZE = (45, 62)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Images this small only lose time by being shared between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(image_augmentations=None, tensor_augmentations=None, *, size=SIZE, mean=None, std=None):
    return BatchedAugmentations(
        image_augmentations or {}, tensor_augmentations or {}, image_size=size, mean=mean, std=std
    )


def noise(count, *, channels=3, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)


def smooth(count, *, channels=3, size=SIZE, seed=0):
    """Images whose neighboring pixels differ by a few per cent, as in photos."""
    coarse = noise(count, channels=channels, size=(size[0] // 12 + 1, size[1] // 12 + 1), seed=seed).float()
    return interpolate(coarse, size, mode="bicubic", align_corners=True).clamp(0, 255).round().to(torch.uint8)


def draw(augmentations, count, seed=1):
    """Returns the rows, and for each step (applied, {name: value}) of each sample."""
    rows = augmentations.draw(count, torch.Generator().manual_seed(seed))
    widths = [1 + step.num_random for step in augmentations.steps]
    numbers = torch.rand(count, sum(widths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn = []
    for step, uniforms in zip(augmentations.steps, numbers.split(widths, 1), strict=True):
        sampled = step.sample(uniforms[:, 1:])
        applied = (uniforms[:, 0] < step.probability).tolist()
        drawn.append([(applied[i], {name: value[i].tolist() for name, value in sampled.items()}) for i in range(count)])
    return rows, drawn


def run_both_ways(augmentations, images, rows):
    """Returns (2, N, C, H, W): per image, as on the CPU, and batched, as on an accelerator."""
    with torch.no_grad():
        return torch.stack([augmentations(images, rows), augmentations.augment(images, rows)])


def jitter(image, factors):
    names = ["brightness", "contrast", "saturation", "hue"]
    names = [name for name in names if name in factors]
    for index in factors["order"]:
        image = getattr(reference, f"adjust_{names[index]}")(image, factors[names[index]])
    return image


def torchvision_on(image, name, parameters, drawn):
    """Applies torchvision's functional with drawn parameters to a float image (C, H, W) of [0, 1], or a PIL image."""
    applied, values = drawn
    transform = getattr(transforms, name)(**parameters)
    channels = image.shape[0] if isinstance(image, Tensor) else 3
    if not applied:
        return image
    match name:
        case "RandomHorizontalFlip":
            return reference.hflip(image)
        case "RandomVerticalFlip":
            return reference.vflip(image)
        case "RandomGrayscale":
            return reference.rgb_to_grayscale(image, channels)
        case "ColorJitter":
            return jitter(image, values)
        case "RandomAffine":
            fill = transform.fill if not isinstance(image, Tensor) else fill_of(transform.fill, channels)
            arguments = (values["angle"], values["translate"], values["scale"], values["shear"])
            return reference.affine(image, *arguments, transform.interpolation, fill, transform.center)
        case "RandomRotation":
            fill = fill_of(transform.fill, channels)
            return reference.rotate(image, values["angle"], transform.interpolation, False, transform.center, fill)
        case "RandomPerspective":
            _, height, width = image.shape
            corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
            fill = fill_of(transform.fill, channels)
            return reference.perspective(image, corners, values["endpoints"], transform.interpolation, fill)
        case "RandomResizedCrop":
            box = [int(values[side]) for side in ("top", "left", "height", "width")]
            return reference.resized_crop(image, *box, transform.size, antialias=True)
        case "RandomCrop":
            return reference.crop(image, int(values["top"]), int(values["left"]), *transform.size)
        case "CenterCrop":
            return reference.center_crop(image, transform.size)
        case "TrivialAugmentWide" | "RandAugment":
            for op, magnitude in zip(values["op"], values["magnitude"], strict=True):
                image = operation(image, OPERATIONS[op], magnitude, transform)
            return image
        case "RandomErasing":
            box = [int(values[side]) for side in ("top", "left", "height", "width")]
            value = transform.value if isinstance(transform.value, (list, tuple)) else [transform.value]
            return reference.erase(image, *box, torch.tensor(value, dtype=torch.float32)[:, None, None])


OPERATIONS = list(transforms.TrivialAugmentWide()._augmentation_space(2))


def operation(image, name, magnitude, transform):
    """Applies an operation of torchvision's; those that float images do not have, to 8 bits."""
    settings = (name, magnitude, transform.interpolation, None)
    if name == "Solarize":
        return torch.where((image * 255).round() >= magnitude, 1 - image, image)
    if name in ("Posterize", "Equalize"):
        return autoaugment._apply_op((image * 255).round().to(torch.uint8), *settings) / 255
    return autoaugment._apply_op(image, *settings)


def fill_of(fill, channels):
    return [float(f) for f in fill] if isinstance(fill, (list, tuple)) else [float(fill)] * channels


def torchvision_chain(augmentations, images, drawn):
    """Applies torchvision's functionals to each sample, in the order of `augmentations` (name → parameters)."""
    results = []
    for index, image in enumerate(images / 255):
        for (name, parameters), of_step in zip(augmentations.items(), drawn, strict=False):
            image = torchvision_on(image, name, parameters, of_step[index])
        results.append(image)
    return torch.stack(results)


def compare(images, image_augmentations=None, tensor_augmentations=None, **settings):
    """Returns what becomes of the images both ways, and by torchvision, and what was drawn; `settings` as in `build`."""
    augmentations = build(image_augmentations, tensor_augmentations, size=tuple(images.shape[2:]), **settings)
    rows, drawn = draw(augmentations, len(images))
    expected = torchvision_chain((image_augmentations or {}) | (tensor_augmentations or {}), images, drawn)
    return run_both_ways(augmentations, images, rows), expected, drawn


CHANNELS = pytest.mark.parametrize("channels", [1, 3])


# Each transform, with torchvision's functional and the same drawn parameters


@CHANNELS
@pytest.mark.parametrize("name", ["RandomHorizontalFlip", "RandomVerticalFlip"])
@pytest.mark.parametrize("p", [0, 0.5, 1])
def test_flips_are_exact(name, p, channels):
    result, expected, drawn = compare(noise(16, channels=channels), {name: {"p": p}})
    assert len({applied for applied, _ in drawn[0]}) == (2 if p == 0.5 else 1)
    assert (result == expected).all()


@CHANNELS
@pytest.mark.parametrize(
    "parameters",
    [
        JITTER,
        {"brightness": 0.8, "contrast": 0.9, "saturation": [0, 3], "hue": 0.5},
        {"hue": [-0.5, -0.2]},
        {"contrast": 0.5},
        {"brightness": 0.5, "saturation": 0.5},
        {"saturation": 0.7, "hue": 0.3},
        {},
    ],
    ids=lambda parameters: "-".join(parameters) or "nothing",
)
def test_color_jitter_equals_torchvision(parameters, channels):
    size, count = (25, 32), 120
    images = noise(count, channels=channels, size=size)
    images[:, :, :9] = images[:, :1, :9] // 128 * 128  # gray, black and half-lit pixels, which have no hue
    images[:, :, 9:15] = images[:, :, 9:15] // 128 * 255  # pure colors, where two channels share the maximum
    result, expected, drawn = compare(images, {"ColorJitter": parameters})
    if len(parameters) == 4:
        assert len({tuple(values["order"]) for _, values in drawn[0]}) == 24
    assert (result - expected).abs().max() < 1e-5
    if parameters and (channels == 3 or {"brightness", "contrast"} & set(parameters)):
        assert (expected - images / 255).abs().mean() > 0.01


@CHANNELS
def test_random_grayscale_equals_torchvision(channels):
    result, expected, drawn = compare(noise(16, channels=channels), {"RandomGrayscale": {"p": 0.5}})
    assert {applied for applied, _ in drawn[0]} == {False, True}
    assert (result - expected).abs().max() < 1e-6


AFFINE_FORMS = {
    "C-50": AFFINE,
    "turned far": {"degrees": 180, "scale": [0.3, 2.5]},
    "both shears": {"degrees": 0, "shear": [-20, 20, -10, 30]},
    "translated": {"degrees": 0, "translate": [0.5, 0.3]},
    "center": {"degrees": 40, "center": [3, 40]},
}


@pytest.mark.parametrize("form", AFFINE_FORMS)
@pytest.mark.parametrize("size", [SIZE, (64, 64)])
def test_affine_equals_torchvision_but_for_ties(form, size):
    """float32 positions are right to some 1e-5 pixels; within that of halfway between two pixels either may be taken."""
    result, expected, _ = compare(noise(64, size=size), {"RandomAffine": AFFINE_FORMS[form]})
    assert (result != expected).any(-3).float().mean() <= 5e-5


def test_affine_ties_at_full_size():
    augmentations, images = build({"RandomAffine": AFFINE}, size=(227, 227)), noise(24, size=(227, 227))
    rows, drawn = draw(augmentations, 24)
    different = (augmentations(images, rows) != torchvision_chain({"RandomAffine": AFFINE}, images, drawn)).any(1)
    assert different.float().mean() <= 5e-5


@pytest.mark.parametrize(
    "parameters", [{"degrees": 15}, {"degrees": [80, 100], "center": [10, 0]}], ids=["15", "center"]
)
def test_rotation_equals_torchvision_but_for_ties(parameters):
    result, expected, _ = compare(noise(64), {"RandomRotation": parameters})
    assert (result != expected).any(-3).float().mean() <= 5e-5


def assert_interpolated_alike(result, expected):
    """float32 positions, torchvision's as well as ours, are right to some 1e-5 pixels.

    At the image's edge, against the fill value, that is a difference of some 1e-5 in a full step from 0 to 1.
    """
    difference = (result - expected).abs()
    assert difference.max() < 5e-5 and difference.mean() < 1e-6


def faded(images):
    """The same images, black towards their edges: no sharp step for a position to matter at."""
    y, x = (torch.linspace(0, np.pi, side).sin() for side in images.shape[2:])
    return (images * (y[:, None] * x)).to(torch.uint8)


@CHANNELS
@pytest.mark.parametrize("scale", [0.2, 0.5, 0.8])
def test_perspective_equals_torchvision(scale, channels):
    chain, images = {"RandomPerspective": {"distortion_scale": scale, "p": 0.7}}, smooth(24, channels=channels)
    result, expected, drawn = compare(images, chain)
    assert_interpolated_alike(result, expected)
    untouched = [not applied for applied, _ in drawn[0]]
    assert (result[:, untouched] == (images / 255)[untouched]).all()
    result, expected, _ = compare(faded(images), chain)
    assert (result - expected).abs().max() < 1e-5


def test_perspective_has_finite_pixels_on_the_horizon():
    size = (10, 12)
    augmentations = build({"RandomPerspective": {"distortion_scale": 1.0, "p": 1.0}}, size=size)
    rows = augmentations.draw(4000, torch.Generator().manual_seed(0))
    result = augmentations.augment(noise(4000, size=size), rows)
    assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("name", ["RandomAffine", "RandomRotation", "RandomPerspective"])
@pytest.mark.parametrize("interpolation", [InterpolationMode.BILINEAR, 0, "bilinear"])
@pytest.mark.parametrize("fill", [0, 0.5, [0.2, 0.4, 0.9]], ids=["black", "gray", "colored"])
def test_interpolation_and_fill(name, interpolation, fill):
    parameters = {"fill": fill, "interpolation": interpolation}
    parameters |= {"p": 1} if name == "RandomPerspective" else {"degrees": 30}
    augmentations, images = build({}, {name: parameters}), smooth(24)
    rows, drawn = draw(augmentations, 24)
    if interpolation == "bilinear":  # YAML has no better way to say it; torchvision wants the enumeration
        parameters["interpolation"] = InterpolationMode.BILINEAR
    expected, result = torchvision_chain({name: parameters}, images, drawn), augmentations(images, rows)
    if interpolation == 0:
        # Corners moved by whole pixels put many look-ups of a small perspective exactly halfway between two pixels.
        ties = 1e-3 if name == "RandomPerspective" else 5e-5
        assert ((result - expected).abs() > 1e-6).any(1).float().mean() <= ties
    else:
        assert_interpolated_alike(result, expected)


def test_fill_of_image_augmentations_is_of_255():
    rows = build({"RandomAffine": AFFINE | {"fill": 51}}).draw(8, torch.Generator().manual_seed(0))
    other = build({}, {"RandomAffine": AFFINE | {"fill": 0.2}}).draw(8, torch.Generator().manual_seed(0))
    assert torch.equal(rows, other) and rows[0, -1] == torch.tensor(0.2)


@CHANNELS
@pytest.mark.parametrize("out", [SIZE, (20, 31), (70, 62), (9, 100)], ids=str)
@pytest.mark.parametrize("limits", [{}, {"scale": [0.6, 1.0], "ratio": [0.8, 1.2]}], ids=["default", "C-46"])
def test_resized_crop_equals_torchvision(out, limits, channels):
    result, expected, _ = compare(noise(32, channels=channels), {"RandomResizedCrop": {"size": out, **limits}})
    assert result.shape == (2, 32, channels, *out)
    assert (result - expected).abs().max() < 1e-5


@CHANNELS
def test_crops_are_exact(channels):
    crops = {"RandomCrop": {"size": [30, 41]}, "CenterCrop": {"size": [20, 31]}}
    result, expected, drawn = compare(noise(16, channels=channels), crops)
    assert result.shape == (2, 16, channels, 20, 31) and (result == expected).all()
    assert len({tuple(values.values()) for _, values in drawn[0]}) > 10


@CHANNELS
def test_each_operation_of_trivial_augment_equals_torchvision(channels):
    images = noise(150, channels=channels)
    images[::5] = images[::5] // 4 + 60  # for AutoContrast and Equalize: not all levels, and only one
    images[::9] = 77
    result, expected, drawn = compare(images, {"TrivialAugmentWide": {}})
    assert {values["op"][0] for _, values in drawn[0]} == set(range(14))
    assert ((result - expected).abs() > 1e-5).float().mean() <= 5e-5  # ties of the warps


@pytest.mark.parametrize("parameters", [{}, {"num_ops": 3, "magnitude": 20, "interpolation": "bilinear"}], ids=str)
def test_rand_augment_equals_torchvision(parameters):
    augmentations, images = build({"RandAugment": parameters}), smooth(50)
    rows, drawn = draw(augmentations, 50)
    if parameters:
        parameters = parameters | {"interpolation": InterpolationMode.BILINEAR}
    expected = torchvision_chain({"RandAugment": parameters}, images, drawn)
    # A difference in the last digit is one level for Posterize and Equalize where a level is halfway between two.
    different = (run_both_ways(augmentations, images, rows) - expected).abs() > 1e-4
    assert different.float().mean() < 2e-3
    assert (expected - images / 255).abs().mean() > 0.05


@CHANNELS
@pytest.mark.parametrize("value", [0, 0.3, "list"])
@pytest.mark.parametrize("scale", [[0.02, 0.25], [0.3, 1.0]], ids=["C-5", "often too large"])
def test_erasing_is_exact(scale, value, channels):
    value = [0.1, 0.5, 0.9][:channels] if value == "list" else value
    images = noise(48, channels=channels)
    result, expected, _ = compare(images, {}, {"RandomErasing": {"p": 0.5, "scale": scale, "value": value}})
    assert (expected != images / 255).any()
    assert (result == expected).all()


def test_erasing_with_noise():
    augmentations = build({}, {"RandomErasing": {"p": 1, "value": "random"}})
    images = noise(24)
    rows, drawn = draw(augmentations, 24)
    result = augmentations(images, rows)
    for image, made, (_, box) in zip(images / 255, result, drawn[0], strict=True):
        top, left, height, width = (int(box[side]) for side in ("top", "left", "height", "width"))
        erased = normal_noise(torch.full((1, 1, 1, 1), box["seed"]), image.shape)[0]
        box = (..., slice(top, top + height), slice(left, left + width))
        image[box] = erased[box]
        assert torch.equal(made, image)
    assert torch.equal(augmentations(images[5:6], rows[5:6])[0], result[5])
    assert torch.equal(augmentations.augment(images, rows), result)


def test_noise_is_normal_and_each_samples_own():
    seeds = torch.tensor([0, 1, 2, 2**23, 2**24 - 1, 1]).view(-1, 1, 1, 1).float()
    values = normal_noise(seeds, torch.Size((3, 60, 80))).flatten(1)
    assert torch.equal(values[1], values[5])
    for sample in values[:5]:
        assert stats.kstest(sample.numpy(), "norm").pvalue > 0.001
        for distance in (1, 2, 80, 4800):  # neighbors, columns, channels: 14,400 pairs, standard deviation 0.008
            assert np.abs(np.corrcoef(sample[:-distance], sample[distance:])[0, 1]) < 0.04
    assert (torch.corrcoef(values[:5]) - torch.eye(5)).abs().max() < 0.04


# Chains


LONG_IMAGE_CHAIN = {
    "ColorJitter": JITTER,
    "RandomHorizontalFlip": {},
    "RandomPerspective": {"distortion_scale": 0.2},
    "RandomVerticalFlip": {},
    "RandomResizedCrop": {"size": [40, 50]},
    "RandomGrayscale": {"p": 0.3},
}
EVERYTHING = LONG_IMAGE_CHAIN | {
    "RandomCrop": {"size": [38, 46]},
    "TrivialAugmentWide": {},
    "RandAugment": {},
    "CenterCrop": {"size": [36, 44]},
}
LONG_TENSOR_CHAIN = {"RandomErasing": {"scale": [0.02, 0.25]}, "RandomRotation": {"degrees": 15, "interpolation": 2}}


def test_order_of_steps_is_kept():
    result, expected, _ = compare(smooth(24), LONG_IMAGE_CHAIN, LONG_TENSOR_CHAIN, mean=MEAN, std=STD)
    # Positions that differ by 1e-4 pixels can matter at the sharp edges of an erased rectangle, scaled up by 1 / std.
    difference = (result - reference.normalize(expected, MEAN, STD)).abs()
    assert difference.max() < 1e-3 and difference.mean() < 1e-6


def test_c_50_chain_equals_torchvision():
    (alone, together), expected, _ = compare(noise(64), C_50, mean=MEAN, std=STD)
    difference = (alone - reference.normalize(expected, MEAN, STD)).abs().amax(1)
    assert (alone - together).abs().max() < 1e-5
    # A pixel taken from its neighbor also moves the mean gray of its photo, by about 1e-5 of its size here.
    assert (difference > 1e-4).float().mean() <= 5e-5 and difference.median() < 1e-6


def test_nothing_configured_is_to_tensor_and_normalize():
    images = noise(3)
    assert torch.equal(build()(images, build().draw(3, torch.Generator())), images / 255)
    augmentations = build(mean=MEAN, std=STD)
    expected = reference.normalize(images / 255, MEAN, STD)
    assert torch.equal(augmentations(images, augmentations.draw(3, torch.Generator())), expected)


def test_given_images_are_left_untouched():
    images, rows = noise(8), build(C_50 | LONG_IMAGE_CHAIN, LONG_TENSOR_CHAIN).draw(8, torch.Generator())
    before = images.clone()
    build(C_50 | LONG_IMAGE_CHAIN, LONG_TENSOR_CHAIN)(images, rows)
    assert torch.equal(images, before)


def test_difference_from_pil_chain_is_its_rounding():
    """PIL rounds to 8 bits after each step and shifts hue in steps of 1/255: some 1/255 on average, not more."""
    images = smooth(32, size=(96, 96))
    augmentations = build(C_50, size=(96, 96))
    rows, drawn = draw(augmentations, 32)
    result = augmentations(images, rows)
    differences = []
    for index, image in enumerate(images):
        image = Image.fromarray(image.permute(1, 2, 0).numpy())
        for (name, parameters), of_step in zip(C_50.items(), drawn, strict=True):
            image = torchvision_on(image, name, parameters, of_step[index])
        differences.append((result[index] - reference.to_tensor(image)).abs().mean().item() * 255)
    assert 0.1 < np.mean(differences) < 2


# Execution


def test_rows_do_not_depend_on_how_many_are_drawn():
    augmentations = build(C_50 | LONG_IMAGE_CHAIN, LONG_TENSOR_CHAIN, mean=MEAN, std=STD)
    epoch = augmentations.draw(500, torch.Generator().manual_seed(3))
    assert torch.equal(epoch[:7], augmentations.draw(7, torch.Generator().manual_seed(3)))
    assert epoch.dtype == torch.float32 and len(epoch.unique(dim=0)) == 500
    images = noise(6)
    order = torch.tensor([499, 3, 17, 250, 4, 8])
    whole = augmentations(images, epoch[order])
    for index, row in enumerate(order):
        assert torch.equal(whole[index], augmentations(images[index : index + 1], epoch[row : row + 1])[0])


def test_no_call_synchronizes_with_the_device():
    """Tensors on the meta device have no values: item, nonzero or a boolean index raises."""
    augmentations = build(C_50 | EVERYTHING, LONG_TENSOR_CHAIN, mean=MEAN, std=STD)
    rows = augmentations.draw(4, torch.Generator()).to("meta")
    assert augmentations(noise(4).to("meta"), rows).shape == (4, 3, 36, 44)
    noisy = build({}, {"RandomErasing": {"value": "random"}})
    assert noisy(noise(4).to("meta"), noisy.draw(4, torch.Generator()).to("meta")).shape == (4, 3, *SIZE)


@pytest.mark.slow
def test_compiles_to_one_graph():
    augmentations = build(C_50 | EVERYTHING, LONG_TENSOR_CHAIN, mean=MEAN, std=STD)
    rows, images = augmentations.draw(4, torch.Generator()), noise(4)
    compiled = torch.compile(augmentations, fullgraph=True, backend="eager")
    expected = augmentations.augment(images, rows)
    # Torch 2.11 takes apart multiply-adds that round once, which is all that may differ.
    torch.testing.assert_close(compiled(images, rows), expected, rtol=0, atol=2e-6)


def test_autocast_costs_no_digits():
    augmentations = build(C_50 | EVERYTHING, LONG_TENSOR_CHAIN, mean=MEAN, std=STD)
    rows, images = augmentations.draw(4, torch.Generator()), noise(4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = augmentations(images, rows)
    assert inside.dtype == torch.float32 and torch.equal(inside, augmentations(images, rows))


def test_a_step_not_drawn_is_only_left_out_where_that_is_known():
    assert is_zero(torch.zeros(1, 3)) and not is_zero(torch.tensor([[0.0, 1.0]]))
    assert not is_zero(torch.zeros(2, 1)) and not is_zero(torch.zeros(1, 1, device="meta"))


# Unsupported transforms and wrong parameters


def test_unsupported_augmentations():
    assert unsupported_augmentations(C_50 | {"RandomVerticalFlip": None}) == []
    configured = {
        "RandomHorizontalFlip": {},
        "GaussianBlur": {"kernel_size": 3},
        "RandomRotation": {"degrees": 5, "expand": True},
        "RandomAffine": {"degrees": 5, "interpolation": 3},
        "RandomResizedCrop": {"size": 50, "antialias": False},
        "RandomCrop": {"size": 50, "padding": 3},
        "RandAugment": {"interpolation": "bicubic"},
    }
    assert unsupported_augmentations(configured) == [
        "GaussianBlur: it has no batched implementation",
        "RandomRotation: expand=True changes the size of each image",
        "RandomAffine: interpolation bicubic; batched are nearest and bilinear",
        "RandomResizedCrop: antialias is off",
        "RandomCrop: padding",
        "RandAugment: interpolation bicubic; batched are nearest and bilinear",
    ]
    assert unsupported_augmentations({"RandomResizedCrop": {"size": 5, "interpolation": "bicubic"}}) == [
        "RandomResizedCrop: interpolation bicubic; batched is bilinear"
    ]
    with pytest.raises(ConfigError, match="GaussianBlur: it has no batched implementation; RandomRotation: expand"):
        build(configured)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("RandomAffine", {"degrees": -5}, "degrees is a single number, it must be positive"),
        ("RandomAffine", {"degrees": 5, "translate": [2, 0]}, "translation values should be between 0 and 1"),
        ("RandomAffine", {"angle": 5}, "unexpected keyword argument 'angle'"),
        ("RandomAffine", {"degrees": [30, -30]}, "RandomAffine: .* not from 30.* to -30"),
        ("ColorJitter", {"hue": 0.7}, "hue values should be between"),
        ("RandomPerspective", {"distortion_scale": -1}, "a distortion_scale from 0 to 1, not -1"),
        ("RandomErasing", {"value": "noise"}, "it should be 'random'"),
        ("RandomCrop", {"size": [45, 70]}, r"RandomCrop: the size \(45, 70\) is larger than the images, \(45, 62\)"),
        ("RandAugment", {}, "move it to image_augmentations"),
        ("RandomAffine", {"degrees": 5, "interpolation": "cubic"}, "'cubic' is not a valid InterpolationMode"),
    ],
)
def test_wrong_parameters(name, parameters, message):
    with pytest.raises(ConfigError, match=message):
        build({}, {name: parameters})


def test_erasing_wants_tensors():
    with pytest.raises(ConfigError, match=r"RandomErasing: .* move it to tensor_augmentations"):
        build({"RandomErasing": {}})


def test_wrong_images():
    augmentations = build(C_50, mean=MEAN, std=STD)
    rows = augmentations.draw(2, torch.Generator())
    with pytest.raises(ValueError, match=r"expected uint8 images \(N, C, 45, 62\)"):
        augmentations(noise(2) / 255, rows)
    with pytest.raises(ValueError, match=r"and as many rows of parameters, not .* and 2 rows"):
        augmentations(noise(3), rows)
    with pytest.raises(ValueError, match="3 values were given for images of 1 channel"):
        augmentations(noise(2, channels=1), rows)
