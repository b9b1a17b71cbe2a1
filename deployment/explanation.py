"""Shows where in a photo a network found what it named: Grad-CAM, by captum.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017:
https://arxiv.org/abs/1610.02391
"""

import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from deployment.prediction import Prediction, read_upright
from deployment.trained import Trained
from utils.errors import ConfigError, RunError
from utils.files import make_folder, replacing

OPACITY = 0.6  # of the colour where the network looked most
LONGEST_SIDE = 1024  # pixels of an overlay


class Explainer:
    """Writes overlays of photos.

    Args:
        trained: The network.
        folder: Where to; made if need be.

    Raises:
        ConfigError: `folder` is a file.
        RunError: captum is not installed, the network has no feature map, or the folder cannot be made.
    """

    def __init__(self, trained: Trained, folder: Path) -> None:
        try:
            from captum.attr import LayerGradCam
        except ImportError as error:
            raise RunError("--explain needs captum: pip install captum") from error
        self.trained = trained
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--explain needs a folder; {folder} is a file")
        make_folder(folder, key="--explain folder")
        self.grad_cam = LayerGradCam(trained.classifier.model, last_feature_map(trained))

    def heat(self, image: Tensor, label: int) -> Tensor:
        """Returns the Grad-CAM map (h, w) of `label` in an image (C, H, W), scaled to 0 … 1."""
        classifier = self.trained.classifier
        images = image[None].to(classifier.device, classifier.dtype)
        with torch.enable_grad():
            heat = self.grad_cam.attribute(images, target=label, relu_attributions=True)[0, 0].detach().float().cpu()
        return heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)

    def write(self, prediction: Prediction) -> Path:
        """Writes the overlay of the most probable class of a photo as PNG, beside whatever is there, and returns where."""
        from matplotlib import colormaps

        name, probability = prediction.classes[0]
        photo = read_upright(prediction.path)
        heat = self.heat(self.trained.transform(photo), self.trained.class_names.index(name))
        photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        smooth = nn.functional.interpolate(heat[None, None], size=photo.size[::-1], mode="bilinear")[0, 0].numpy()
        colours = Image.fromarray(colormaps["turbo"](smooth, bytes=True)).convert("RGB")
        opacity = Image.fromarray((255 * OPACITY * smooth).astype("uint8"))
        overlay = Image.composite(colours, photo, opacity)
        path = self._free_path(prediction.path.stem)
        with replacing(path) as partial:
            caption = f"{name}  {100 * probability:.1f} %{'' if heat.any() else ', but no place speaks for it'}"
            _with_caption(overlay, caption).save(partial, format="PNG")
        return path

    def _free_path(self, stem: str) -> Path:
        """Returns a name that nothing has yet: the folder may be that of the photos."""
        path, number = self.folder / f"{stem}_explained.png", 1
        while os.path.lexists(path):  # a link that leads nowhere is somebody's too
            number += 1
            path = self.folder / f"{stem}_explained_{number}.png"
        return path


def last_feature_map(trained: Trained) -> nn.Module:
    """Returns the module whose output is the last one that still has a place for each part of the image.

    Raises:
        RunError: There is none in the second half of the network, as in a transformer.
    """
    model, (height, width) = trained.classifier.model, trained.config.image_size
    finished: list[nn.Module] = []
    maps: list[int] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            h, w = output.shape[2:]
            if h * w > 1 and h < height and abs(h - height * w / width) <= 1:  # not channels, in the place of a side
                maps.append(len(finished))
        finished.append(module)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    trained.logits(torch.zeros(1, 1 if trained.config.convert_to_grayscale else 3, height, width))
    for hook in hooks:
        hook.remove()
    if not maps or maps[-1] < len(finished) / 2:
        raise RunError(f"{trained.config.architecture} has no feature map near its end that Grad-CAM could explain")
    return finished[maps[-1]]


def _with_caption(image: Image.Image, caption: str) -> Image.Image:
    """Returns `image` above a line of text that is as wide as it or smaller."""
    size = 18
    font = ImageFont.load_default(size)
    while size > 7 and font.getlength(caption) > image.width - 8:
        size -= 1
        font = ImageFont.load_default(size)
    captioned = Image.new("RGB", (image.width, image.height + size + 10), "white")
    captioned.paste(image)
    ImageDraw.Draw(captioned).text((4, image.height + 3), caption, fill="black", font=font)
    return captioned
