"""Shows which part of an image a prediction is based on: Grad-CAM, by captum.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017:
https://arxiv.org/abs/1610.02391
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from assembly import image_shape
from datamodules.transforms import seen_box
from deployment.prediction import Prediction, read_upright
from deployment.trained import TrainedModel
from utils.errors import ConfigError, RunError
from utils.files import make_folder, replacing

MAX_OPACITY = 0.6  # of the heat map
MAX_SIDE = 1024  # pixels of an overlay
MAX_FONT_SIZE, MIN_FONT_SIZE = 18, 7


class Explainer:
    """Writes images overlaid with their Grad-CAM heat map.

    Args:
        trained: The model.
        folder: The folder to write to; it is created.

    Raises:
        ConfigError: `folder` is a file.
        RunError: captum is not installed, the model has no feature map, or the folder cannot be created.
    """

    def __init__(self, trained: TrainedModel, folder: Path) -> None:
        try:
            from captum.attr import LayerGradCam
        except ImportError as error:
            raise RunError("--explain needs captum: pip install captum") from error
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--explain needs a folder; {folder} is a file")
        self.trained = trained
        self.grad_cam = LayerGradCam(trained.classifier.model, last_feature_map(trained))
        self.folder = make_folder(folder, key="--explain folder")

    def heat_map(self, image: Tensor, label: int) -> Tensor:
        """Returns the Grad-CAM map (h, w) of `label` in an image (C, H, W), scaled to 0 … 1."""
        classifier = self.trained.classifier
        images = image[None].to(classifier.device, classifier.dtype)
        with torch.enable_grad():
            heat = self.grad_cam.attribute(images, target=label, relu_attributions=True)[0, 0].detach().float().cpu()
        return heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)

    def write(self, prediction: Prediction) -> Path:
        """Writes the overlay of the top-1 prediction as a new PNG, and returns its path."""
        from matplotlib import colormaps

        name, probability = prediction.classes[0]
        image = read_upright(prediction.path)
        heat = self.heat_map(self.trained.transform(image), self.trained.class_names.index(name))
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        smooth = self._over_image(heat, image.size)
        colors = Image.fromarray(colormaps["turbo"](smooth, bytes=True)).convert("RGB")
        opacity = Image.fromarray((255 * MAX_OPACITY * smooth).astype("uint8"))
        overlay = Image.composite(colors, image, opacity)
        caption = f"{name}  {100 * probability:.1f} %{'' if heat.any() else ', no positive evidence'}"
        path = self._unused_path(Path(prediction.path.name).stem)
        with replacing(path) as partial:
            _with_caption(overlay, caption).save(partial, format="PNG")
        return path

    def _over_image(self, heat: Tensor, size: tuple[int, int]) -> np.ndarray:
        """Returns a heat map (h, w) of what the model sees as one of the whole image, whose width and height are given."""
        config = self.trained.config
        x1, y1, x2, y2 = map(round, seen_box(size, config.test_size, config.aspect))
        seen = nn.functional.interpolate(heat[None, None], size=(y2 - y1, x2 - x1), mode="bilinear")[0, 0]
        whole = Image.new("F", size)
        whole.paste(Image.fromarray(seen.numpy()), (x1, y1))
        return np.asarray(whole)

    def _unused_path(self, stem: str) -> Path:
        """Returns a path that does not exist: the folder may hold the images themselves."""
        path, number = self.folder / f"{stem}_explained.png", 1
        while os.path.lexists(path):  # broken links count
            number += 1
            path = self.folder / f"{stem}_explained_{number}.png"
        return path


def last_feature_map(trained: TrainedModel) -> nn.Module:
    """Returns the last module whose output (N, C, h, w) is a spatial map of the image.

    Raises:
        RunError: There is none in the second half of the model, as in a transformer.
    """
    model, images = trained.classifier.model, torch.zeros(1, *image_shape(trained.config, testing=True))
    height, width = images.shape[2:]
    finished: list[nn.Module] = []
    maps: list[int] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            h, w = output.shape[2:]
            # The aspect ratio tells a map (N, C, h, w) from tensors that are laid out otherwise.
            if h * w > 1 and h < height and abs(h - height * w / width) <= 1:
                maps.append(len(finished))
        finished.append(module)

    hooks = [module.register_forward_hook(record) for module in model.modules()]
    with torch.inference_mode():
        model(images.to(trained.classifier.device, trained.classifier.dtype))  # once, also with flip_at_test
    for hook in hooks:
        hook.remove()
    if not maps or maps[-1] < len(finished) / 2:
        raise RunError(f"{trained.config.architecture} has no feature map near its output for Grad-CAM")
    return finished[maps[-1]]


def _with_caption(image: Image.Image, caption: str) -> Image.Image:
    """Returns `image` with a line of text below it, in the largest font that fits."""
    for size in range(MAX_FONT_SIZE, MIN_FONT_SIZE - 1, -1):
        font = ImageFont.load_default(size)
        if font.getlength(caption) <= image.width - 8:
            break
    captioned = Image.new("RGB", (image.width, image.height + size + 10), "white")
    captioned.paste(image)
    ImageDraw.Draw(captioned).text((4, image.height + 3), caption, fill="black", font=font)
    return captioned
