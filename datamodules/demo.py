"""The demo: writes a data set of drawn cars in the format of Stanford Cars' updated release."""

import functools
import io
import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
from PIL import Image, ImageColor, ImageDraw, ImageFilter, ImageOps

from utils.errors import DataError
from utils.progress import progress_bar

TABLE = Path(__file__).with_name("demo_cars.txt")
MARKER = "DEMO.txt"
FIELDS = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
MAT_HEADER_LENGTH = 116  # bytes of free text at the head of a MATLAB 5.0 file
SUPERSAMPLING = 2
MARGIN = 0.2  # meters of canvas around a car
DARK, RUBBER, CHROME, GLASS = (30, 31, 35), (22, 22, 24), (205, 209, 214), (142, 170, 194)
SKIES = (  # zenith, horizon, and the light (red, green, blue) on the car
    ((86, 148, 214), (206, 228, 244), (1.0, 1.0, 1.0)), ((150, 162, 176), (222, 227, 230), (0.93, 0.95, 0.97)),
    ((94, 84, 150), (250, 190, 138), (1.0, 0.88, 0.8)), ((14, 20, 48), (58, 66, 112), (0.8, 0.83, 0.94)),
)  # fmt: skip
WALLS = (
    (150, 84, 66), (196, 160, 122), (118, 128, 140), (92, 110, 128), (206, 186, 150), (84, 92, 116), (70, 120, 124),
)  # fmt: skip

Color = tuple[int, int, int]


class CarModel(NamedTuple):
    """An entry of demo_cars.txt, in meters."""

    name: str
    body: np.ndarray  # (N, 2), as all points
    glass: np.ndarray
    seams: np.ndarray  # x of doors and of the pillars above them
    wheels: np.ndarray
    lamp: float
    parts: list[tuple[bool, str, float, np.ndarray]]  # behind the body, color, width or 0 if it is filled, points
    low: np.ndarray  # lower left corner of the canvas
    high: np.ndarray


def _parse(entry: str) -> CarModel:
    def points(text: str) -> np.ndarray:
        return np.array([[int(number) / 100 for number in word.split(",")] for word in text.split()])

    name, body, glass, seams, wheels, lamp, *texts = " ".join(entry.split()).split(" | ")
    matches = [re.fullmatch(r"(<?)(\w+) (?:(\d+) )?(.+)", text).groups() for text in texts]
    parts = [(mark == "<", color, int(width or 0) / 100, points(shape)) for mark, color, width, shape in matches]
    outline = np.concatenate([points(body), *(part[3] for part in parts)])
    return CarModel(
        name, points(body), points(glass), points(seams).ravel(), points(wheels), int(lamp) / 100, parts,
        np.array((outline[:, 0].min() - MARGIN, -MARGIN)), outline.max(0) + MARGIN,
    )  # fmt: skip


@functools.cache
def car_models() -> list[CarModel]:
    """Reads demo_cars.txt."""
    return [_parse(entry) for entry in re.findall(r"^\w.*(?:\n +.*)*", TABLE.read_text("utf-8"), re.MULTILINE)]


def write_demo_data(folder: Path, *, seed: int = 0, training_photos: int = 40, validation_photos: int = 12) -> None:
    """Draws `car_ims/000001.jpg` … and writes `cars_annos.mat`, all or nothing; a complete set is left as it is.

    The same seed and numbers of photos per model give the same bytes with the same versions of NumPy, Pillow and SciPy.

    Raises:
        DataError: The folder holds anything but this data set, or cannot be written.
    """
    folder = folder.resolve()
    models, per_model = car_models(), training_photos + validation_photos
    rows = [(label, number) for label in range(len(models)) for number in range(per_model)]
    paths = [f"car_ims/{index:06d}.jpg" for index in range(1, len(rows) + 1)]
    description = (
        f"Drawn cars for trying things out, in the format of Stanford Cars: {len(models)} models, {training_photos} "
        f"training and {validation_photos} validation photos of each, seed {seed}.\n"
    )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        _require_complete(folder, description, paths)
        return

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            draft = Path(temporary, folder.name)
            _draw_all(draft, rows, paths, seed=seed, training_photos=training_photos)
            (draft / MARKER).write_text(description, encoding="utf-8")
            try:
                if folder.exists():
                    folder.rmdir()  # Windows does not rename onto an existing folder
                draft.replace(folder)
            except OSError:
                if not folder.is_dir():
                    raise
                _require_complete(folder, description, paths)  # another process was faster
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{folder} cannot be written: {reason}; make room, or set another data_path") from error


def _draw_all(
    folder: Path, rows: Sequence[tuple[int, int]], paths: Sequence[str], *, seed: int, training_photos: int
) -> None:
    """Draws a photo for each row, a label and a number, and writes `cars_annos.mat`."""
    (folder / "car_ims").mkdir(parents=True)
    annotations = np.empty((1, len(rows)), dtype=[(field, object) for field in FIELDS])
    for index, (label, number) in enumerate(progress_bar(rows, description="drawing cars", unit=" photos")):
        photo, bounding_box = draw_photo(car_models()[label], np.random.default_rng((seed, label, number)))
        photo.save(folder / paths[index], quality=85)
        values = (*bounding_box, label + 1, int(number >= training_photos))
        annotations[0, index] = (paths[index], *(np.array([[v]], dtype=np.min_scalar_type(v)) for v in values))
    (folder / "cars_annos.mat").write_bytes(_mat_file(annotations))


def _mat_file(annotations: np.ndarray) -> bytes:
    class_names, buffer = np.empty((1, len(car_models())), dtype=object), io.BytesIO()
    class_names[0] = [model.name for model in car_models()]
    scipy.io.savemat(buffer, {"annotations": annotations, "class_names": class_names}, do_compression=True)
    # SciPy writes the time into the header, so that no two files would be equal.
    return b"MATLAB 5.0 MAT-file, drawn cars".ljust(MAT_HEADER_LENGTH) + buffer.getvalue()[MAT_HEADER_LENGTH:]


def _require_complete(folder: Path, description: str, paths: list[str]) -> None:
    marker = folder / MARKER
    if not marker.is_file():
        raise DataError(f"{folder} holds other files than drawn cars (no {MARKER}); choose another folder")
    if (found := marker.read_text(encoding="utf-8")) != description:
        raise DataError(
            f"{folder} holds other drawn cars; delete it or choose another folder\n"
            f"  expected: {description.rstrip()}\n  found:    {found.rstrip()}"
        )
    missing = [path for path in ("cars_annos.mat", *paths) if not (folder / path).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {len(missing)} files, such as {missing[0]}; delete it, and it is drawn again")


def draw_photo(model: CarModel, rng: np.random.Generator) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Draws a photo of a car; its size, scene and colors do not depend on the model.

    Returns:
        The photo in RGB, 160 … 480 pixels wide, and the bounding box (x1, y1, x2, y2) of the car in pixels, 1-based and
        inclusive as in Stanford Cars.
    """
    length, tallness = model.high - model.low - MARGIN
    aspect_ratio = min(rng.uniform(1.5, 2.2), length / tallness * rng.uniform(0.75, 0.95))
    width = int(rng.integers(160, 481))
    height = round(width / aspect_ratio)
    car = draw_car(model, min(width * rng.uniform(0.84, 0.95) / length, height * 0.9 / tallness), rng)
    left = int(rng.integers(0, width - car.width + 1))
    top = int((height - car.height) * rng.uniform(0.5, 0.95))
    ground = top + car.height

    scene, light = _draw_scene(width, height, int(ground - height * rng.uniform(0.06, 0.2)), rng)
    shadow, depth = Image.new("L", scene.size), car.height * 0.06
    ImageDraw.Draw(shadow).ellipse((left, ground - 1.6 * depth, left + car.width, ground + 0.8 * depth), 190)
    scene.paste((12, 12, 18), mask=shadow.filter(ImageFilter.BoxBlur(depth * 0.6)))
    noise = rng.integers(-6, 7, (height, width, 1))
    scene = Image.fromarray((np.asarray(scene) * np.array(light) + noise).clip(0, 255).astype(np.uint8))
    scene.paste(
        car.point([round(value * channel) for channel in (*light, 1) for value in range(256)]), (left, top), car
    )
    return scene, (left + 1, top + 1, left + car.width, ground)


def draw_car(model: CarModel, scale: float, rng: np.random.Generator) -> Image.Image:
    """Draws a car in random colors, facing either way, at about `scale` pixels per meter.

    Returns:
        The car in RGBA, cut tight: each edge has a pixel that the car covers at least by half.
    """
    scales = scale * SUPERSAMPLING * rng.uniform(0.96, 1.04, 2)
    image = Image.new("RGBA", tuple(np.ceil((model.high - model.low) * scales).astype(int).tolist()))
    draw = ImageDraw.Draw(image)
    paint, accent = _random_color(rng), _random_color(rng)
    shade = _tone(paint, -0.3)
    colors = {"shade": shade, "accent": accent, "glass": GLASS, "dark": DARK, "rubber": RUBBER, "chrome": CHROME}

    def pixels(points: np.ndarray) -> np.ndarray:
        return (np.asarray(points) - (model.low[0], model.high[1])) * (1, -1) * scales

    def line(points: np.ndarray, color: Color, width: float) -> None:
        draw.line(pixels(points).ravel().tolist(), color, max(1, round(width * scales[1])), joint="curve")

    def fill(points: np.ndarray, color: Color, *, radius: float = 0.1) -> None:
        """Fills an outline with rounded corners, brighter at its top; glass has slanting reflections."""
        corners = pixels(_rounded(points, radius))
        origin = np.floor(corners.min(0)).astype(int)
        width, height = (np.ceil(corners.max(0)).astype(int) - origin + 1).tolist()
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).polygon((corners - origin).ravel().tolist(), 255)
        pattern = _gradient(width, height, _tone(color, 0.3), _tone(color, -0.45), color)
        if color == GLASS:
            slant = (np.arange(width) + np.arange(height)[:, None] * 0.7) / scales[0] % 1.3
            bright = (slant < 0.26) | ((slant > 0.34) & (slant < 0.4))
            pattern.paste("white", mask=Image.fromarray((bright * 64).astype(np.uint8)))
        image.paste(pattern, tuple(origin.tolist()), mask)

    def add_parts(*, behind: bool) -> None:
        for is_behind, color, width, points in model.parts:
            if is_behind == behind:
                line(points, colors[color], width) if width else fill(points, colors[color])

    body, roof, belt = _rounded(model.body, 0.3), model.glass[1:-1], model.glass[0, 1]
    (rear, bottom), (front, _) = body.min(0), body.max(0)
    line(((model.wheels[0, 0], bottom + 0.05), (model.wheels[-1, 0], bottom + 0.05)), DARK, 0.3)
    add_parts(behind=True)
    fill(model.body, paint, radius=0.3)
    fill(model.glass, GLASS, radius=0.07)
    for x in model.seams:
        line(((x, belt - 0.02), (x, bottom + 0.12)), _tone(paint, -0.45), 0.025)
        line(((x + 0.08, belt - 0.13), (x + 0.24, belt - 0.13)), _tone(paint, -0.55), 0.045)
        if roof[0, 0] < x < roof[-1, 0]:
            line(((x, belt - 0.02), (x, np.interp(x, *roof.T) + 0.02)), shade, 0.07)
    high, low = model.lamp + 0.09, model.lamp - 0.07
    for side, tip, color, length in ((-1, rear, (204, 26, 32), 0.15), (1, front, (250, 244, 205), 0.24)):
        end = body[np.abs(body[:, 0] - tip) < 0.15 * (front - rear)]  # lamps follow the outline of the body
        x_high, x_low = np.interp((high, low), *end[np.argsort(end[:, 1])].T[::-1])
        fill(
            ((x_high, high), (x_low, low), (x_low - side * length * 1.2, low), (x_high - side * length, high)),
            color,
            radius=0,
        )
        inner, outer = tip - side * 0.3, tip + side * 0.05
        fill(((inner, bottom), (inner, bottom + 0.17), (outer, bottom + 0.17), (outer, bottom)), shade)
    add_parts(behind=False)

    spokes, rim_size, start = int(rng.integers(5, 10)), rng.uniform(0.6, 0.72), rng.uniform(0, math.tau)
    rim = _tone(CHROME, rng.uniform(-0.35, 0.2))
    for x, radius in model.wheels:
        disc = (
            (1.12, DARK),
            (1, RUBBER),
            (rim_size, rim),
            (rim_size * 0.86, _tone(rim, -0.6)),
            (0.16, _tone(rim, -0.2)),
        )
        for size, color in disc:
            reach = radius * size
            draw.ellipse(pixels(((x - reach, radius + reach), (x + reach, radius - reach))).ravel().tolist(), color)
        for angle in start + np.arange(spokes) * math.tau / spokes:
            reach = 0.9 * rim_size * radius
            line(((x, radius), (x + reach * math.cos(angle), radius + reach * math.sin(angle))), rim, radius * 0.15)

    car = image.reduce(SUPERSAMPLING)
    if rng.random() < 0.5:
        car = car.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return car.crop(car.getchannel("A").point([0] * 128 + [255] * 128).getbbox())


def _draw_scene(width: int, height: int, horizon: int, rng: np.random.Generator) -> tuple[Image.Image, Color]:
    """Draws a blurred city, hills or a wall with a road in front; returns it and the light on the car."""
    zenith, haze, light = SKIES[rng.integers(len(SKIES))]
    scene = _gradient(width, height, zenith, haze)
    draw, kind = ImageDraw.Draw(scene), rng.integers(3)
    if kind == 0:
        left = -int(rng.integers(0, 30))
        while left < width:
            wall, right = WALLS[rng.integers(len(WALLS))], left + int(rng.integers(24, 70))
            top = horizon - int(height * rng.uniform(0.2, 0.75))
            draw.rectangle((left, top, right, horizon), wall)
            for x in range(left + 4, right - 5, 9):
                for y in range(top + 5, horizon - 6, 10):
                    draw.rectangle((x, y, x + 4, y + 5), (250, 224, 150) if rng.random() < 0.3 else _tone(wall, -0.3))
            left = right + int(rng.integers(0, 8))
    elif kind == 1:
        x = np.linspace(0, width, 60)
        for distance in (0.7, 0.45, 0.2):
            waves = np.sin(x / width * rng.uniform(3, 9) + rng.uniform(0, 6)) * rng.uniform(0.02, 0.08)
            ridge = np.stack([x, horizon - height * (waves + distance * 0.35)], 1).ravel().tolist()
            green = _tone((round(36 + 60 * distance), 142, 88), rng.uniform(-0.3, 0.1) + distance * 0.3)
            draw.polygon([*ridge, width, height, 0, height], green)
    else:
        wall = _tone(WALLS[rng.integers(len(WALLS))], rng.uniform(-0.4, 0.6))
        scene.paste(_gradient(width, height, _tone(wall, -0.3), _tone(wall, 0.3)))
    road = _tone((116, 114, 108), rng.uniform(-0.3, 0.3))
    scene.paste(_gradient(width, height - horizon, _tone(road, 0.15), _tone(road, -0.2)), (0, horizon))
    blurred = scene.filter(ImageFilter.BoxBlur(width / 160 * rng.uniform(0.5, 1.5)))
    return Image.blend(blurred, Image.new("RGB", scene.size, haze), rng.uniform(0.2, 0.45)), light


def _rounded(points: np.ndarray, radius: float) -> np.ndarray:
    """Returns the outline (N, 2) with a quadratic Bézier curve within `radius` of each corner."""
    corners, steps = np.asarray(points), np.linspace(0, 1, 7)[:, None]
    curves = []
    for corner, before, after in zip(corners, np.roll(corners, 1, 0), np.roll(corners, -1, 0), strict=True):
        start, end = (corner + (p - corner) * min(radius / math.dist(p, corner), 0.5) for p in (before, after))
        curves.append((1 - steps) ** 2 * start + 2 * steps * (1 - steps) * corner + steps**2 * end)
    return np.concatenate(curves)


def _gradient(width: int, height: int, top: Color, bottom: Color, middle: Color | None = None) -> Image.Image:
    return ImageOps.colorize(Image.linear_gradient("L").resize((width, height)), top, bottom, middle)


def _tone(color: Color, light: float) -> Color:
    """Mixes a color with black (light in −1 … 0) or with white (light in 0 … 1)."""
    return tuple(round(value + (255 * (light > 0) - value) * abs(light)) for value in color)


def _random_color(rng: np.random.Generator) -> Color:
    """Returns a strong hue, or in a quarter of the cases a shade of gray."""
    low, high = ((0, 5, 20), (360, 6, 97)) if rng.random() < 0.25 else ((0, 45, 45), (360, 95, 95))
    return ImageColor.getrgb("hsv({},{}%,{}%)".format(*rng.integers(low, high)))
