"""Draws the app's icon: a car within a viewfinder."""

from PIL import Image, ImageDraw

BLUE, WHITE, GLASS = "#0b57a4", "#ffffff", "#a9cdf0"
SCALE = 4  # drawn larger, then made smaller, so that edges are smooth

# In hundredths of the icon. All of it lies in the middle circle of 80 %, which every mask of a home screen leaves.
BODY = [(19, 59), (22, 51), (33, 48), (41, 38), (62, 38), (71, 48), (79, 51), (81, 59), (81, 64), (19, 64)]
WINDOWS = [[(37, 48), (43, 41), (50, 41), (50, 48)], [(53, 48), (53, 41), (61, 41), (66, 48)]]
WHEELS = [(33, 64), (67, 64)]
CORNERS = [(24, 24, 1, 1), (76, 24, -1, 1), (24, 76, 1, -1), (76, 76, -1, -1)]


def draw_icon(side: int) -> Image.Image:
    """Returns the icon, RGB, `side` pixels high and wide."""
    unit = side * SCALE / 100
    icon = Image.new("RGB", (side * SCALE, side * SCALE), BLUE)
    draw = ImageDraw.Draw(icon)

    def points(outline: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * unit, y * unit) for x, y in outline]

    draw.polygon(points(BODY), fill=WHITE)
    for window in WINDOWS:
        draw.polygon(points(window), fill=BLUE)
    for x, y in WHEELS:
        for radius, color in ((8, BLUE), (6, WHITE), (2.5, BLUE)):
            draw.ellipse(points([(x - radius, y - radius), (x + radius, y + radius)]), fill=color)
    for x, y, right, down in CORNERS:
        draw.line(points([(x, y + 10 * down), (x, y), (x + 10 * right, y)]), fill=GLASS, width=round(3 * unit))
    return icon.resize((side, side), Image.Resampling.LANCZOS)
