"""Draws the demo's photos: one car from the side, in random colours, somewhere in a random scene."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from datamodules.demo_cars import CarModel, Part, Points, rectangle
from datamodules.demo_scenes import Colour, draw_scene, random_colour, shaded, tone

SUPERSAMPLING = 2
MARGIN = 0.2  # metres of canvas around a car, for bumpers and for half the width of a line
DARK, RUBBER, CHROME = (30, 31, 35), (22, 22, 24), (205, 209, 214)
HEAD_LAMP, TAIL_LAMP, WINDOW = (250, 244, 205), (204, 26, 32), (150, 180, 204)


class _Canvas:
    """A transparent picture that is drawn on in metres."""

    def __init__(self, model: CarModel, scale: np.ndarray) -> None:
        (self.left, _), (_, self.top) = model.extent + np.array([[-MARGIN], [MARGIN]])
        self.scale = scale * SUPERSAMPLING
        size = (model.extent[1] - (self.left, 0) + (MARGIN, MARGIN)) * self.scale
        self.image = Image.new("RGBA", tuple(np.ceil(size).astype(int).tolist()))
        self.draw = ImageDraw.Draw(self.image)

    def pixels(self, points: Points | np.ndarray) -> np.ndarray:
        return (np.array(points) - (self.left, self.top)) * (1, -1) * self.scale

    def line(self, points: Points, colour: Colour, width: float) -> None:
        pixels = self.pixels(points).ravel().tolist()
        self.draw.line(pixels, colour, max(1, round(width * self.scale[1])), joint="curve")

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        corners = self.pixels(((x - radius, y + radius), (x + radius, y - radius)))
        self.draw.ellipse(corners.ravel().tolist(), colour)

    def fill(self, points: Points | np.ndarray, tones: list[Colour], *, shine: bool = False) -> None:
        """Fills a shape with tones from its top to its bottom, with slanting reflections if it is to shine."""
        pixels = self.pixels(points)
        corner = np.floor(pixels.min(0)).astype(int)
        width, height = (np.ceil(pixels.max(0)).astype(int) - corner + 1).tolist()
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).polygon((pixels - corner).ravel().tolist(), 255)
        shade = shaded(width, height, tones)
        if shine:
            slant = (np.arange(width) + np.arange(height)[:, None] * 0.7) / self.scale[0] % 1.3
            bright = (slant < 0.26) | ((slant > 0.34) & (slant < 0.4))
            shade[bright] = shade[bright] * 0.75 + 64
        self.image.paste(Image.fromarray(shade), tuple(corner.tolist()), mask)


def rounded(points: Points, radius: float) -> np.ndarray:
    """Returns the outline, (N, 2), with a quadratic Bézier curve from `radius` before to `radius` after each corner."""
    corners = np.array(points)
    steps = np.linspace(0, 1, 7)[:, None]
    curves = []
    for index, corner in enumerate(corners):
        neighbours = corners[index - 1], corners[(index + 1) % len(corners)]
        start, end = (corner + (p - corner) * min(radius / math.dist(p, corner), 0.5) for p in neighbours)
        curves.append((1 - steps) ** 2 * start + 2 * steps * (1 - steps) * corner + steps**2 * end)
    return np.concatenate(curves)


def draw_car(model: CarModel, scale: float, rng: np.random.Generator) -> Image.Image:
    """Draws one car in random colours, facing either way.

    Args:
        model: What to draw.
        scale: Pixels per metre; length and height each vary by 4 % around it.
        rng: Where everything random comes from.

    Returns:
        The car in RGBA, cut tight: each edge holds a pixel that the car covers at least by half.
    """
    canvas = _Canvas(model, scale * rng.uniform(0.96, 1.04, 2))
    paint, accent = random_colour(rng), random_colour(rng)
    panel = tone(random_colour(rng, grey=0.6), rng.uniform(0, 0.7))
    window = tone(WINDOW, rng.uniform(-0.35, 0.1))
    tones = {
        "paint": [tone(paint, 0.35), paint, tone(paint, 0.14), tone(paint, -0.12), tone(paint, -0.45)],
        "shade": [tone(paint, 0.1), tone(paint, -0.3)],
        "accent": [tone(accent, 0.3), accent],
        "panel": [tone(panel, 0.4), panel, tone(panel, -0.2)],
        "glass": [window, tone(window, -0.4), tone(window, -0.72)],
        "dark": [tone(DARK, 0.15), DARK],
        "rubber": [tone(RUBBER, 0.15), RUBBER],
        "chrome": [CHROME, tone(CHROME, -0.25)],
        "lamp": [HEAD_LAMP, tone(HEAD_LAMP, -0.15)],
        "seat": [tone(accent, -0.1), tone(accent, -0.55)],
    }

    def add(parts: tuple[Part, ...]) -> None:
        for part in parts:
            if part.width:
                canvas.line(part.points, tones[part.colour][-1], part.width)
            else:
                canvas.fill(rounded(part.points, 0.1), tones[part.colour], shine=part.colour == "glass")

    body = rounded(model.body, 0.3)
    bottom, belt = model.body[0][1], model.glass[0][1]
    axles = [x for x, _ in model.wheels]
    canvas.fill(rectangle(min(axles), bottom - 0.1, max(axles), bottom + 0.2), tones["dark"])
    add(model.behind)
    canvas.fill(body, tones["paint"])
    canvas.fill(rounded(model.glass, 0.07), tones["glass"], shine=True)
    for x in model.pillars:
        roof = np.interp(x, *np.array(sorted(model.glass)[1:-1]).T)
        canvas.line(((x, belt - 0.02), (x, roof + 0.02)), tones["shade"][1], 0.07)
    for x in model.doors:
        canvas.line(((x, belt - 0.02), (x, bottom + 0.12)), tone(paint, -0.45), 0.025)
    for x in model.doors[:-1]:
        canvas.line(((x + 0.08, belt - 0.13), (x + 0.24, belt - 0.13)), tone(paint, -0.55), 0.045)
    _draw_ends(canvas, body, model.lamp, tones["shade"])
    add(model.details)
    _draw_wheels(canvas, model.wheels, rng)

    car = canvas.image.reduce(SUPERSAMPLING)
    if rng.random() < 0.5:
        car = car.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return car.crop(car.getchannel("A").point([0] * 128 + [255] * 128).getbbox())


def _draw_ends(canvas: _Canvas, body: np.ndarray, lamp: float, bumper_tones: list[Colour]) -> None:
    """Draws lamps that follow the outline, and bumpers that stand out of it."""
    (rear, bottom), (front, _) = body.min(0), body.max(0)
    for side, tip, colour, length in ((-1, rear, TAIL_LAMP, 0.15), (1, front, HEAD_LAMP, 0.24)):
        end = body[np.abs(body[:, 0] - tip) < 0.15 * (front - rear)]
        end = end[np.argsort(end[:, 1])]
        high, low = lamp + 0.09, lamp - 0.07
        x_high, x_low = np.interp((high, low), end[:, 1], end[:, 0])
        inner = ((x_low - side * length * 1.2, low), (x_high - side * length, high))
        canvas.fill(((x_high, high), (x_low, low), *inner), [colour, tone(colour, -0.15)])
        bumper = rectangle(tip - side * 0.3, bottom, tip + side * 0.05, bottom + 0.17)
        canvas.fill(rounded(bumper, 0.06), bumper_tones)


def _draw_wheels(canvas: _Canvas, wheels: Points, rng: np.random.Generator) -> None:
    spokes, size, start = int(rng.integers(5, 10)), rng.uniform(0.6, 0.72), rng.uniform(0, math.tau)
    angles = start + np.arange(spokes) * math.tau / spokes
    rim = tone(CHROME, rng.uniform(-0.35, 0.2))
    for x, radius in wheels:
        canvas.disc(x, radius * 1.12, radius * 1.12, DARK)
    for x, radius in wheels:
        canvas.disc(x, radius, radius, RUBBER)
        canvas.disc(x, radius, radius * size, rim)
        canvas.disc(x, radius, radius * size * 0.86, tone(rim, -0.6))
        for angle in angles:
            tip = np.array([math.cos(angle), math.sin(angle)]) * radius * size * 0.9 + (x, radius)
            canvas.line(((x, radius), tip), rim, radius * 0.15)
        canvas.disc(x, radius, radius * 0.16, tone(rim, -0.2))


def draw_photo(model: CarModel, rng: np.random.Generator) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Draws a photo of a car; its size, its scene and its colours do not depend on the model.

    Args:
        model: Which car.
        rng: Where everything random comes from.

    Returns:
        The photo in RGB, 160 … 480 pixels wide, and the car's bounding box (x1, y1, x2, y2) in pixels, 1-based and
        inclusive as in Stanford Cars.
    """
    length, tallness = model.extent[1] - (model.extent[0, 0], 0) + MARGIN
    aspect_ratio = min(rng.uniform(1.5, 2.2), length / tallness * rng.uniform(0.75, 0.95))
    width = int(rng.integers(160, 481))
    height = round(width / aspect_ratio)
    scale = min(width * rng.uniform(0.84, 0.95) / length, height * 0.9 / tallness)
    car = draw_car(model, scale, rng)
    left = int(rng.integers(0, width - car.width + 1))
    top = int((height - car.height) * rng.uniform(0.5, 0.95))
    ground = top + car.height

    scene, light = draw_scene(width, height, int(ground - height * rng.uniform(0.06, 0.2)), rng)
    shadow = Image.new("L", scene.size)
    thickness = car.height * 0.06
    ImageDraw.Draw(shadow).ellipse((left, ground - 1.6 * thickness, left + car.width, ground + thickness * 0.8), 190)
    scene.paste((12, 12, 18), mask=shadow.filter(ImageFilter.BoxBlur(thickness * 0.6)))
    grain = rng.integers(-6, 7, (height, width, 1))
    scene = Image.fromarray((np.asarray(scene) * np.array(light) + grain).clip(0, 255).astype(np.uint8))
    lit = car.point([round(value * channel) for channel in (*light, 1) for value in range(256)])
    scene.paste(lit, (left, top), car)
    return scene, (left + 1, top + 1, left + car.width, ground)
