"""Flips, RandomAffine, RandomRotation and RandomPerspective with a transform of its own for each sample.

Affine and perspective warps follow torchvision's tensor functionals: coordinates are pixel centers, each output pixel is
sampled from the input (`grid_sample`), and pixels outside have the fill value. Flips are not folded into the warp: they
cost a hundredth of it, and folding would round differently where a position lies halfway between two pixels.
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
    """Mirrors left and right."""

    works_on_uint8 = True
    dimension = -1

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        return images.flip(self.dimension)


class RandomVerticalFlip(RandomHorizontalFlip):
    """Mirrors top and bottom."""

    dimension = -2


class Warp(BatchedStep):
    """A projective map from output to input positions; pixels outside the input have the fill value.

    The columns are eight coefficients of the map (the ninth is 1), then the fill value unless that is black.
    """

    projective = False  # whether the last two coefficients can differ from 0

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
        self.fades = self.interpolation != "nearest" or bool(self.fill)  # towards the outside, by its share of a pixel

    @staticmethod
    def unsupported_reason(
        transform: transforms.RandomAffine | transforms.RandomRotation | transforms.RandomPerspective,
    ) -> str | None:
        interpolation = InterpolationMode(transform.interpolation)
        if interpolation not in (InterpolationMode.NEAREST, InterpolationMode.BILINEAR):
            return f"interpolation {interpolation.value}; batched are nearest and bilinear"
        return None

    def pixel_maps(self, sampled: dict[str, Tensor]) -> Tensor:
        """Returns the maps (N, 3, 3) from output to input positions, both in pixels from the center of the image."""
        raise NotImplementedError

    def params(self, sampled: dict[str, Tensor], count: int) -> Tensor:
        height, width = self.size
        maps = self.pixel_maps(sampled)
        # grid_sample measures an image from −1 to 1.
        maps = maps / torch.tensor([width / 2, height / 2, 1], dtype=torch.float64)[:, None]
        maps = maps / maps[:, 2:, 2:]
        coefficients = maps[:, :2].transpose(1, 2).flatten(1)  # of x for both coordinates, of y, of 1
        return torch.cat([coefficients, maps[:, 2, :2], constant_columns(self.fill, count)], 1)

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        height, width = self.size
        x = torch.arange(width, device=params.device).view(1, 1, 1, -1) - (width - 1) / 2
        y = torch.arange(height, device=params.device).view(1, 1, -1, 1) - (height - 1) / 2
        # Broadcast sums, not a matrix product, which would lose digits under TF32 or autocast.
        of_x, of_y, of_1 = params[:, :6, None, None].split(2, dim=1)
        grid = of_x * x + (of_y * y + of_1)  # (N, 2, H, W)
        if self.projective:
            grid = grid / (params[:, 6:7, None, None] * x + (params[:, 7:8, None, None] * y + 1))
            # Unlike torchvision, which returns NaN on the horizon: outside, and so black.
            grid = grid.nan_to_num(nan=OUTSIDE).clamp(-OUTSIDE, OUTSIDE)
        grid = grid.permute(0, 2, 3, 1)
        if not self.fades:
            return self.grid_sample(images, grid)
        # Like torchvision: weighted by the fraction of the four neighbors inside, on top of zeros for those outside.
        sampled = self.grid_sample(pad(images, (0, 0, 0, 0, 0, 1), value=1.0), grid)
        images, inside = sampled[:, :-1] * sampled[:, -1:], sampled[:, -1:]
        return images.add_((1 - inside) * as_channels(params[:, 8:], images)) if self.fill else images

    def grid_sample(self, images: Tensor, grid: Tensor) -> Tensor:
        return grid_sample(images, grid, mode=self.interpolation, padding_mode="zeros", align_corners=False)


def inverse_affine_maps(
    center: list[float] | Tensor, angle: Tensor, translate: Tensor, scale: Tensor, shear: Tensor
) -> Tensor:
    """Returns the inverse of translate · center · rotate · scale · shear · center⁻¹ as (N, 3, 3), float64.

    Args:
        center: x and y of the fixed point, pixels from the center of the image; of all samples, or (N, 2).
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
    fixed = torch.as_tensor(center, dtype=torch.float64)
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
        limits = self.transform
        angle, scale = uniform(uniforms[:, 0], *limits.degrees), torch.ones(len(uniforms), dtype=torch.float64)
        translate, shear = torch.zeros(2, len(uniforms), 2, dtype=torch.float64)
        if limits.translate is not None:
            for axis, reach in enumerate((limits.translate[0] * width, limits.translate[1] * height)):
                translate[:, axis] = uniform(uniforms[:, 1 + axis], -reach, reach).round()
        if limits.scale is not None:
            scale = uniform(uniforms[:, 3], *limits.scale)
        if limits.shear is not None:
            shear[:, 0] = uniform(uniforms[:, 4], *limits.shear[:2])
            if len(limits.shear) == 4:
                shear[:, 1] = uniform(uniforms[:, 5], *limits.shear[2:])
        return {"angle": angle, "translate": translate, "scale": scale, "shear": shear}

    def center(self) -> list[float]:
        height, width = self.size
        return [
            c - s / 2 for c, s in zip(self.transform.center or (width / 2, height / 2), (width, height), strict=True)
        ]

    def pixel_maps(self, sampled: dict[str, Tensor]) -> Tensor:
        return inverse_affine_maps(self.center(), **sampled)


class RandomRotation(RandomAffine):
    """Rotation about the center or a given point."""

    num_random = 1

    @staticmethod
    def unsupported_reason(transform: transforms.RandomRotation) -> str | None:
        return "expand=True changes the size of each image" if transform.expand else Warp.unsupported_reason(transform)

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        """Draws "angle" (N), degrees, counter-clockwise."""
        return {"angle": uniform(uniforms[:, 0], *self.transform.degrees)}

    def pixel_maps(self, sampled: dict[str, Tensor]) -> Tensor:
        # torchvision rotates counter-clockwise here, clockwise in RandomAffine.
        zeros = torch.zeros(len(sampled["angle"]), 2, dtype=torch.float64)
        return inverse_affine_maps(self.center(), -sampled["angle"], zeros, zeros[:, 0] + 1, zeros)


class RandomPerspective(Warp):
    """Moves each corner inwards by whole pixels of its own."""

    num_random = 8
    projective = True

    def __init__(self, transform: transforms.RandomPerspective, size: tuple[int, int], white_value: float) -> None:
        super().__init__(transform, size, white_value)
        height, width = size
        self.corners = torch.tensor([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]).double()
        self.inwards = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
        reach = [int(transform.distortion_scale * (side // 2)) for side in (width, height)]
        if min(reach) < 0:
            raise ValueError(f"expected a distortion_scale from 0 to 1, not {transform.distortion_scale}.")
        self.insets = torch.tensor(reach) + 1

    def sample(self, uniforms: Tensor) -> dict[str, Tensor]:
        """Draws "endpoints" (N, 4, 2): the new x and y of each corner, pixels, clockwise from the top left."""
        return {"endpoints": self.corners + self.inwards * integers(uniforms.view(-1, 4, 2), self.insets)}

    def pixel_maps(self, sampled: dict[str, Tensor]) -> Tensor:
        x, y = sampled["endpoints"].unbind(2)  # each (N, 4)
        target_x, target_y = self.corners.unbind(1)
        zeros, one = torch.zeros_like(x), torch.ones_like(x)
        equations = torch.cat(
            [
                torch.stack([x, y, one, zeros, zeros, zeros, -target_x * x, -target_x * y], 2),
                torch.stack([zeros, zeros, zeros, x, y, one, -target_y * x, -target_y * y], 2),
            ],
            1,
        )
        targets = torch.cat([target_x, target_y]).expand(len(x), -1)[:, :, None]
        solved = torch.linalg.lstsq(equations, targets, driver="gelsd").solution.squeeze(2).float().double()
        maps = torch.cat([solved, one[:, :1]], 1).view(-1, 3, 3)
        # From pixels measured from the top left corner to pixels measured from the center.
        from_center = torch.eye(3, dtype=torch.float64)
        from_center[:2, 2] = torch.tensor([self.size[1] / 2, self.size[0] / 2])
        return from_center.inverse() @ maps @ from_center
