"""Flips, RandomAffine, RandomRotation and RandomPerspective for batches in which each sample has its own map.

Affine maps and perspectives follow torchvision's tensor functionals: coordinates are pixel centres, an output pixel is
looked up in the input (`grid_sample`), and what lies outside has the fill value. Flips are not folded into that
look-up: they move bytes, at a hundredth of the cost of the rest, and folding would round differently where
a look-up falls halfway between two pixels.
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from datamodules.on_device.draws import (
    BatchedStep,
    as_channels,
    constant_columns,
    integers,
    per_channel,
    uniform,
)

OUTSIDE = 8.0  # of an image, which spans −1 … 1


class RandomHorizontalFlip(BatchedStep):
    """Left and right exchanged."""

    works_on_uint8 = True
    dimension = -1

    def __init__(
        self,
        transform: transforms.RandomHorizontalFlip | transforms.RandomVerticalFlip,
        size: tuple[int, int],
        white_value: float,
    ) -> None:
        super().__init__(transform, size, white_value)
        self.probability = transform.p

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        return images.flip(self.dimension)


class RandomVerticalFlip(RandomHorizontalFlip):
    """Top and bottom exchanged."""

    dimension = -2


class Warp(BatchedStep):
    """A projective map from output to input positions; what lies outside the input has the fill value.

    A row holds eight coefficients of the map, the ninth being 1, and the fill value unless that is black.
    """

    projective = False  # whether the last two coefficients can be other than 0

    def __init__(
        self,
        transform: transforms.RandomAffine | transforms.RandomRotation | transforms.RandomPerspective,
        size: tuple[int, int],
        white_value: float,
    ) -> None:
        super().__init__(transform, size, white_value)
        self.interpolation = InterpolationMode(transform.interpolation).value
        fill = per_channel(transform.fill, white_value)
        self.fill = fill if any(fill) else []
        self.transform = transform

    @staticmethod
    def unsupported_reason(
        transform: transforms.RandomAffine | transforms.RandomRotation | transforms.RandomPerspective,
    ) -> str | None:
        interpolation = InterpolationMode(transform.interpolation)
        if interpolation not in (InterpolationMode.NEAREST, InterpolationMode.BILINEAR):
            return f"interpolation {interpolation.value}; nearest and bilinear have a batched form"
        return None

    def pixel_maps(self, sampled: dict[str, Tensor]) -> Tensor:
        """Returns the maps (N, 3, 3) from output to input positions, both in pixels from the image's centre."""
        raise NotImplementedError

    def params(self, sampled: dict[str, Tensor], count: int) -> Tensor:
        height, width = self.size
        maps = self.pixel_maps(sampled)
        # grid_sample wants −1 … 1 between the image's edges.
        maps = maps / torch.tensor([width / 2, height / 2, 1], dtype=torch.float64)[:, None]
        maps = maps / maps[:, 2:, 2:]
        coefficients = maps[:, :2].transpose(1, 2).flatten(1)  # of x for both coordinates, of y, of 1
        return torch.cat([coefficients, maps[:, 2, :2], constant_columns(self.fill, count)], 1)

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        height, width = self.size
        x = torch.arange(width, device=params.device).view(1, 1, 1, -1) - (width - 1) / 2
        y = torch.arange(height, device=params.device).view(1, 1, -1, 1) - (height - 1) / 2
        # Sums of a row and a column, not a matrix product: that would lose digits where TF32 or autocast are on.
        of_x, of_y, of_1 = params[:, :6, None, None].split(2, dim=1)
        grid = of_x * x + (of_y * y + of_1)  # (N, 2, H, W)
        if self.projective:
            grid = grid / (params[:, 6:7, None, None] * x + (params[:, 7:8, None, None] * y + 1))
            # On the horizon there is nothing to be looked up, which is black, as outside; torchvision has no numbers there.
            grid = grid.nan_to_num(nan=OUTSIDE).clamp(-OUTSIDE, OUTSIDE)
        grid = grid.permute(0, 2, 3, 1)
        if self.interpolation == "nearest" and not self.fill:
            return self.grid_sample(images, grid)
        # torchvision weighs by the share of the four pixels that lies inside, on top of their own zeros outside.
        looked_up = self.grid_sample(pad(images, (0, 0, 0, 0, 0, 1), value=1.0), grid)
        images, inside = looked_up[:, :-1] * looked_up[:, -1:], looked_up[:, -1:]
        return images.add_((1 - inside) * as_channels(params[:, 8:], images)) if self.fill else images

    def grid_sample(self, images: Tensor, grid: Tensor) -> Tensor:
        return grid_sample(images, grid, mode=self.interpolation, padding_mode="zeros", align_corners=False)


def inverse_affine_maps(centre: list[float], angle: Tensor, translate: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Returns the inverse of translate · centre · rotate · scale · shear · centre⁻¹ as (N, 3, 3), float64.

    Args:
        centre: x and y of the fixed point, pixels from the image's centre.
        angle: (N), degrees.
        translate: (N, 2), pixels.
        scale: (N).
        shear: (N, 2), degrees, along x and y.
    """
    rotation, (shear_x, shear_y) = angle.deg2rad(), shear.deg2rad().unbind(1)
    a = (rotation - shear_y).cos() / shear_y.cos()
    b = -a * shear_x.tan() - rotation.sin()
    c = (rotation - shear_y).sin() / shear_y.cos()
    d = -c * shear_x.tan() + rotation.cos()
    linear = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / scale[:, None, None]
    fixed = torch.tensor(centre, dtype=torch.float64)
    offset = fixed - (linear @ (fixed + translate)[:, :, None]).squeeze(2)
    maps = torch.eye(3, dtype=torch.float64).repeat(len(angle), 1, 1)
    maps[:, :2] = torch.cat([linear, offset[:, :, None]], 2)
    return maps


class RandomAffine(Warp):
    """Rotation, whole-pixel translation, scale and shear."""

    num_random = 6

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        """Draws "angle" (N), "translate" (N, 2), "scale" (N) and "shear" (N, 2); degrees, pixels, 1, degrees."""
        height, width = self.size
        wanted = self.transform
        angle, scale = uniform(uniforms[:, 0], *wanted.degrees), torch.ones(len(uniforms), dtype=torch.float64)
        translate, shear = torch.zeros(2, len(uniforms), 2, dtype=torch.float64)
        if wanted.translate is not None:
            for axis, reach in enumerate((wanted.translate[0] * width, wanted.translate[1] * height)):
                translate[:, axis] = uniform(uniforms[:, 1 + axis], -reach, reach).round()
        if wanted.scale is not None:
            scale = uniform(uniforms[:, 3], *wanted.scale)
        if wanted.shear is not None:
            shear[:, 0] = uniform(uniforms[:, 4], *wanted.shear[:2])
            if len(wanted.shear) == 4:
                shear[:, 1] = uniform(uniforms[:, 5], *wanted.shear[2:])
        return {"angle": angle, "translate": translate, "scale": scale, "shear": shear}

    def centre(self) -> list[float]:
        height, width = self.size
        return [
            c - s / 2 for c, s in zip(self.transform.center or (width / 2, height / 2), (width, height), strict=True)
        ]

    def pixel_maps(self, sampled: dict[str, Tensor]) -> Tensor:
        return inverse_affine_maps(self.centre(), **sampled)


class RandomRotation(RandomAffine):
    """Rotation about the centre or a given point."""

    num_random = 1

    @staticmethod
    def unsupported_reason(transform: transforms.RandomRotation) -> str | None:
        return "expand=True changes the size of each photo" if transform.expand else Warp.unsupported_reason(transform)

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        """Draws "angle" (N), degrees, counter-clockwise."""
        return {"angle": uniform(uniforms[:, 0], *self.transform.degrees)}

    def pixel_maps(self, sampled: dict[str, Tensor]) -> Tensor:
        # torchvision's rotation turns the other way round than its affine map.
        nothing = torch.zeros(len(sampled["angle"]), 2, dtype=torch.float64)
        return inverse_affine_maps(self.centre(), -sampled["angle"], nothing, nothing[:, 0] + 1, nothing)


class RandomPerspective(Warp):
    """The four corners moved inwards, each by its own whole pixels."""

    num_random = 8
    projective = True

    def __init__(self, transform: transforms.RandomPerspective, size: tuple[int, int], white_value: float) -> None:
        super().__init__(transform, size, white_value)
        self.probability = transform.p
        height, width = size
        self.corners = torch.tensor([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]).double()
        self.inwards = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
        reach = [int(transform.distortion_scale * (side // 2)) for side in (width, height)]
        if min(reach) < 0:
            raise ValueError(f"distortion_scale is from 0 to 1, not {transform.distortion_scale}.")
        self.insets = torch.tensor(reach) + 1

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        """Draws "endpoints" (N, 4, 2): x and y, pixels, of where each corner goes, clockwise from the top left."""
        return {"endpoints": self.corners + self.inwards * integers(uniforms.view(-1, 4, 2), self.insets)}

    def pixel_maps(self, sampled: dict[str, Tensor]) -> Tensor:
        x, y = sampled["endpoints"].unbind(2)  # each (N, 4)
        target_x, target_y = self.corners.unbind(1)
        nothing, one = torch.zeros_like(x), torch.ones_like(x)
        equations = torch.cat(
            [
                torch.stack([x, y, one, nothing, nothing, nothing, -target_x * x, -target_x * y], 2),
                torch.stack([nothing, nothing, nothing, x, y, one, -target_y * x, -target_y * y], 2),
            ],
            1,
        )
        targets = torch.cat([target_x, target_y]).expand(len(x), -1)[:, :, None]
        solved = torch.linalg.lstsq(equations, targets, driver="gelsd").solution.squeeze(2).float().double()
        maps = torch.cat([solved, one[:, :1]], 1).view(-1, 3, 3)
        # From positions measured from the top left corner, to ones measured from the centre.
        from_centre = torch.eye(3, dtype=torch.float64)
        from_centre[:2, 2] = torch.tensor([self.size[1] / 2, self.size[0] / 2])
        return from_centre.inverse() @ maps @ from_centre
