"""The colours of the demo, and the scenes in front of which its cars stand."""

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
SKIES = (  # colours from the zenith to the horizon, and the light (red, green, blue) that falls on the car
    (((86, 148, 214), (206, 228, 244)), (1.0, 1.0, 1.0)),
    (((150, 162, 176), (222, 227, 230)), (0.93, 0.95, 0.97)),
    (((74, 84, 150), (222, 132, 130), (253, 205, 138)), (1.0, 0.88, 0.8)),
    (((128, 164, 206), (246, 220, 206)), (1.0, 0.96, 0.94)),
    (((14, 20, 48), (58, 66, 112)), (0.8, 0.83, 0.94)),
)
WALLS = (
    *((150, 84, 66), (196, 160, 122), (118, 128, 140), (176, 176, 170), (92, 110, 128), (148, 132, 112)),
    *((110, 120, 96), (84, 92, 116), (206, 186, 150), (128, 96, 104), (70, 120, 124), (186, 120, 88)),
)
ROADS = ((96, 98, 104), (160, 150, 132), (106, 124, 84), (128, 122, 120))


def shaded(width: int, height: int, tones: list[Colour] | tuple[Colour, ...]) -> np.ndarray:
    """Returns rows of colour that run through the tones from top to bottom: (height, width, 3), uint8."""
    rows, stops = np.linspace(0, 1, height), np.linspace(0, 1, len(tones))
    column = np.stack([np.interp(rows, stops, channel) for channel in np.array(tones).T], -1)
    return np.repeat(column[:, None].astype(np.uint8), width, axis=1)


def tone(colour: Colour, light: float) -> Colour:
    """Returns the colour mixed with black (light in −1 … 0) or with white (light in 0 … 1)."""
    return tuple(round(value + (255 * (light > 0) - value) * abs(light)) for value in colour)


def random_colour(rng: np.random.Generator, *, grey: float = 0.25) -> Colour:
    """Returns a strong hue, or with the probability `grey` a shade between black and white."""
    hue, saturation, value = rng.uniform((0, 0.45, 0.45), (1, 0.95, 0.95))
    if rng.random() < grey:
        saturation, value = 0.05, rng.uniform(0.2, 0.97)
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))


def draw_scene(
    width: int, height: int, horizon: int, rng: np.random.Generator
) -> tuple[Image.Image, tuple[float, float, float]]:
    """Draws a place to park in.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        horizon: The row where the ground begins.
        rng: Where everything random comes from.

    Returns:
        The scene in RGB, and the light on what stands there: factors 0 … 1 for red, green and blue.
    """
    tones, light = SKIES[rng.integers(len(SKIES))]
    scene = Image.fromarray(shaded(width, height, tones))
    setting = (_city, _country, _coast, _garage, _studio)[rng.integers(5)]
    setting(scene, horizon, rng)
    if setting is not _studio:
        _road(scene, horizon, rng)
        # Out of focus and hazy behind the car, as a photographer would have it.
        haze = Image.new("RGB", scene.size, tones[-1])
        blurred = scene.filter(ImageFilter.BoxBlur(width / 160 * rng.uniform(0.5, 1.5)))
        scene = Image.blend(blurred, haze, rng.uniform(0.3, 0.5))
    return scene, light


def _city(scene: Image.Image, horizon: int, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(scene)
    haze = scene.getpixel((0, horizon))
    for distance in (0.6, 0.2):
        left = -int(rng.integers(0, 30))
        while left < scene.width:
            wall = np.array(WALLS[rng.integers(len(WALLS))]) * (1 - distance) + np.array(haze) * distance
            wall = tuple(wall.astype(int).tolist())
            right = left + int(rng.integers(24, 70))
            top = horizon - int(scene.height * rng.uniform(0.2, 0.75) * (0.6 + distance))
            draw.rectangle((left, top, right, horizon), wall)
            for y in range(top + 5, horizon - 6, 10):
                for x in range(left + 4, right - 5, 9):
                    window = (250, 224, 150) if rng.random() < 0.3 else tone(wall, -0.3)
                    draw.rectangle((x, y, x + 4, y + 5), window)
            left = right + int(rng.integers(0, 8))


def _country(scene: Image.Image, horizon: int, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(scene)
    width, height = scene.size
    x = np.linspace(0, width, 60)
    for distance in (0.7, 0.45, 0.2):
        waves = np.sin(x / width * rng.uniform(3, 9) + rng.uniform(0, 6)) * rng.uniform(0.02, 0.08)
        ridge = np.stack([x, horizon - height * (waves + distance * 0.35)], 1)
        green = tone((round(36 + 60 * distance), 142, 88), rng.uniform(-0.3, 0.1) + distance * 0.3)
        draw.polygon([*ridge.ravel().tolist(), width, height, 0, height], green)
    for _ in range(rng.integers(2, 8)):
        x, size = rng.uniform(0, width), height * rng.uniform(0.06, 0.14)
        leaves = tone((58, 112, 56), rng.uniform(-0.4, 0.2))
        draw.rectangle((x - size / 8, horizon - size * 2, x + size / 8, horizon), (84, 62, 46))
        for _ in range(7):
            u, v, r = rng.normal(x, size / 2), horizon - size * rng.uniform(1.6, 3), size * rng.uniform(0.4, 0.75)
            draw.ellipse((u - r, v - r, u + r, v + r), tone(leaves, rng.uniform(-0.15, 0.15)))


def _coast(scene: Image.Image, horizon: int, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(scene)
    width, height = scene.size
    shore = horizon - int(height * rng.uniform(0.1, 0.3))
    r = height * rng.uniform(0.05, 0.1)
    x, y = rng.uniform(0, width), shore - rng.uniform(-0.5, 4) * r
    draw.ellipse((x - r, y - r, x + r, y + r), (255, 244, 214))
    scene.paste(Image.fromarray(shaded(width, height, ((60, 120, 158), (120, 186, 200)))), (0, shore))
    for _ in range(rng.integers(1, 5)):
        x, y, size = rng.uniform(0, width), rng.uniform(shore, horizon), height * rng.uniform(0.04, 0.12)
        draw.polygon(((x, y - size * 2), (x, y), (x + size, y)), (248, 248, 244))
        hull = ((x - size * 0.7, y + 2), (x + size, y + 2), (x + size * 0.7, y + size / 4))
        draw.polygon(hull, random_colour(rng))


def _garage(scene: Image.Image, horizon: int, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(scene)
    wall = tone(WALLS[rng.integers(len(WALLS))], rng.uniform(-0.3, 0.3))
    width, height = rng.integers((20, 8), (60, 24)).tolist()
    draw.rectangle((0, 0, *scene.size), tone(wall, -0.3))
    for row, y in enumerate(range(horizon - height, -height, -height)):
        for x in range(-width // 2 * (row % 2), scene.width, width):
            draw.rectangle((x, y, x + width - 2, y + height - 2), tone(wall, rng.uniform(-0.15, 0.15)))


def _studio(scene: Image.Image, horizon: int, rng: np.random.Generator) -> None:
    wall = tone(WALLS[rng.integers(len(WALLS))], rng.uniform(-0.4, 0.6))
    scene.paste(Image.fromarray(shaded(*scene.size, (tone(wall, -0.3), wall, tone(wall, 0.3), wall))))


def _road(scene: Image.Image, horizon: int, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(scene)
    width, height = scene.size
    road = tone(ROADS[rng.integers(len(ROADS))], rng.uniform(-0.3, 0.2))
    scene.paste(Image.fromarray(shaded(width, height - horizon, (tone(road, 0.15), tone(road, -0.2)))), (0, horizon))
    draw.rectangle((0, horizon, width, horizon + 2), tone(road, 0.4))
    if rng.random() < 0.6:
        y, dash, thick = horizon + int(height * rng.uniform(0.2, 0.35)), int(rng.integers(20, 50)), 1 + height // 60
        for x in range(-int(rng.integers(0, 50)), width, dash * 2):
            draw.polygon(((x, y), (x + dash, y), (x + dash - 4, y + thick), (x - 4, y + thick)), (232, 230, 220))
