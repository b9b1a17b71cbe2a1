"""The car models of the demo: invented makes, each a shape of its own, drawn as outlines in metres."""

from dataclasses import dataclass

import numpy as np

# (x, y) in metres
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Part:
    """A detail: a filled shape, or a line where it has a width (metres)."""

    colour: str  # a key of the tones in demo_drawing.draw_car
    points: Points
    width: float = 0.0


@dataclass(frozen=True)
class CarModel:
    """A model facing right: metres from its rear end and above the ground."""

    name: str
    body: Points  # from the rear bottom corner over the roof to the front bottom corner
    glass: Points
    pillars: tuple[float, ...]  # x of the posts between the windows
    doors: tuple[float, ...]  # x of the seams
    wheels: tuple[tuple[float, float], ...]  # x and radius
    lamp: float  # height of head and tail lamps
    behind: tuple[Part, ...] = ()  # drawn before the body
    details: tuple[Part, ...] = ()  # drawn on top of it

    @property
    def extent(self) -> np.ndarray:
        """The smallest and the largest x and y of body and parts, (2, 2), in metres."""
        points = np.concatenate([self.body, *(part.points for part in self.behind + self.details)])
        return np.stack([points.min(0), points.max(0)])


def rectangle(x1: float, y1: float, x2: float, y2: float) -> Points:
    """Returns the corners of an upright rectangle."""
    return (x1, y1), (x1, y2), (x2, y2), (x2, y1)


# fmt: off
CAR_MODELS = (
    CarModel(
        "Altura Vista Sedan 2012",
        body=((0.06, 0.27), (0, 0.7), (0.04, 1.06), (1.1, 1.1), (1.6, 1.54), (2.75, 1.55), (3.3, 1.08), (4.45, 0.98),
              (4.66, 0.8), (4.62, 0.27)),
        glass=((1.22, 1.1), (1.66, 1.47), (2.7, 1.48), (3.14, 1.07)),
        pillars=(2.16,), doors=(1.25, 2.16, 3.05), wheels=((0.95, 0.34), (3.72, 0.34)), lamp=0.86,
    ),
    CarModel(
        "Borealis Pip Hatchback 2011",
        body=((0.06, 0.27), (0, 0.75), (0.06, 1.0), (0.5, 1.44), (1.75, 1.5), (2.45, 1.06), (3.4, 0.94), (3.62, 0.75),
              (3.58, 0.27)),
        glass=((0.98, 1.06), (0.98, 1.4), (1.7, 1.43), (2.26, 1.05)),
        pillars=(), doors=(1.02, 2.25), wheels=((0.6, 0.34), (2.92, 0.34)), lamp=0.84,
        behind=(Part("shade", ((0.16, 1.4), (0.2, 1.5), (0.95, 1.5), (0.95, 1.36))),),
        details=(Part("glass", ((0.46, 1.08), (0.6, 1.32), (0.84, 1.37), (0.84, 1.07))),),
    ),
    CarModel(
        "Fjordal Trek Wagon 2010",
        body=((0.06, 0.28), (0, 0.8), (0.03, 1.06), (0.28, 1.48), (2.85, 1.51), (3.52, 1.05), (4.6, 0.92), (4.86, 0.7),
              (4.82, 0.28)),
        glass=((0.2, 1.06), (0.4, 1.41), (2.8, 1.44), (3.34, 1.03)),
        pillars=(1.1, 2.18), doors=(1.1, 2.18, 3.2), wheels=((0.98, 0.35), (3.9, 0.35)), lamp=0.85,
        behind=(Part("dark", ((0.75, 1.45), (0.8, 1.62)), 0.06), Part("dark", ((2.45, 1.45), (2.4, 1.62)), 0.06),
                Part("dark", ((0.5, 1.62), (2.7, 1.62)), 0.06),
                Part("accent", ((0.75, 1.64), (0.7, 1.9), (1.0, 1.96), (2.3, 1.94), (2.7, 1.72), (2.6, 1.64)))),
    ),
    CarModel(
        "Zephyra GT Coupe 2012",
        body=((0.06, 0.2), (0, 0.6), (0.08, 0.88), (0.6, 0.94), (1.75, 1.24), (2.3, 1.23), (3.1, 0.86), (4.25, 0.68),
              (4.6, 0.48), (4.55, 0.18)),
        glass=((1.15, 0.92), (1.78, 1.17), (2.27, 1.16), (2.88, 0.84)),
        pillars=(), doors=(1.6, 2.75), wheels=((0.9, 0.36), (3.68, 0.36)), lamp=0.6,
        behind=(Part("dark", ((0.35, 0.85), (0.28, 1.14)), 0.09),
                Part("shade", ((-0.14, 1.26), (-0.12, 1.13), (0.55, 1.09), (0.55, 1.16)))),
        details=(Part("dark", ((0.95, 0.62), (1.5, 0.7), (1.45, 0.5))), Part("dark", ((1.4, 0.2), (3.2, 0.2)), 0.1)),
    ),
    CarModel(
        "Solmar Breeze Convertible 2009",
        body=((0.06, 0.25), (0, 0.7), (0.08, 0.92), (0.95, 0.97), (1.05, 0.88), (2.4, 0.86), (2.6, 0.96), (3.85, 0.82),
              (4.2, 0.6), (4.15, 0.25)),
        glass=((2.58, 0.94), (2.14, 1.36), (2.24, 1.36), (2.8, 0.92)),
        pillars=(), doors=(1.25, 2.45), wheels=((0.85, 0.34), (3.38, 0.34)), lamp=0.7,
        behind=(Part("seat", ((1.02, 0.7), (0.96, 1.28), (1.16, 1.3), (1.32, 0.7))),
                Part("seat", ((1.5, 0.7), (1.46, 1.26), (1.64, 1.28), (1.78, 0.7))),
                Part("dark", ((2.1, 0.8), (1.98, 1.1)), 0.06), Part("chrome", ((2.5, 0.9), (2.12, 1.38)), 0.08),
                Part("dark", ((0.15, 0.88), (0.2, 1.12), (0.85, 1.16), (1.0, 0.88)))),
        details=(Part("chrome", ((0.3, 0.5), (3.9, 0.5)), 0.035),),
    ),
    CarModel(
        "Granitor Summit SUV 2012",
        body=((0.04, 0.45), (0, 1.0), (0.02, 1.3), (0.12, 1.84), (2.8, 1.86), (3.22, 1.27), (4.5, 1.2), (4.68, 1.05),
              (4.66, 0.45)),
        glass=((0.2, 1.28), (0.28, 1.74), (2.74, 1.76), (3.06, 1.26)),
        pillars=(1.02, 1.98), doors=(1.02, 1.98, 2.95), wheels=((0.98, 0.46), (3.72, 0.46)), lamp=1.06,
        behind=(Part("rubber", rectangle(-0.26, 0.72, 0.1, 1.46)), Part("dark", ((0.35, 1.95), (2.65, 1.95)), 0.06),
                Part("dark", ((0.5, 1.7), (0.5, 1.95)), 0.06), Part("dark", ((2.5, 1.7), (2.5, 1.95)), 0.06)),
        details=(Part("dark", ((0.06, 0.54), (4.64, 0.54)), 0.18),),
    ),
    CarModel(
        "Hauldon 1500 Crew Cab 2011",
        body=((0.02, 0.48), (0, 1.14), (2.02, 1.14), (2.1, 1.78), (3.5, 1.8), (3.98, 1.18), (5.25, 1.12), (5.48, 1.0),
              (5.45, 0.45)),
        glass=((2.22, 1.18), (2.24, 1.68), (3.44, 1.7), (3.82, 1.16)),
        pillars=(2.95,), doors=(2.06, 2.95, 3.75), wheels=((1.05, 0.44), (4.42, 0.44)), lamp=0.92,
        details=(Part("dark", ((0.02, 1.15), (2.0, 1.15)), 0.07), Part("chrome", ((1.6, 0.5), (3.9, 0.5)), 0.07),
                 Part("shade", ((0.2, 0.98), (1.9, 0.98)), 0.03)),
    ),
    CarModel(
        "Pelikan Carrier Cargo Van 2012",
        body=((0.02, 0.3), (0, 2.36), (0.15, 2.46), (3.55, 2.48), (4.4, 1.5), (5.1, 1.22), (5.3, 0.95), (5.27, 0.3)),
        glass=((3.3, 1.44), (3.3, 2.14), (3.68, 2.16), (4.22, 1.42)),
        pillars=(), doors=(0.1, 1.95, 3.2, 4.2), wheels=((1.0, 0.37), (4.35, 0.37)), lamp=0.95,
        details=(Part("shade", ((0.3, 1.5), (3.1, 1.5)), 0.05), Part("accent", rectangle(0.5, 1.65, 2.9, 2.1)),
                 Part("dark", ((0.3, 0.62), (3.9, 0.62)), 0.07)),
    ),
    CarModel(
        "Famira Lounge Minivan 2010",
        body=((0.06, 0.27), (0, 0.9), (0.06, 1.8), (0.3, 1.92), (2.5, 1.96), (4.0, 1.18), (4.65, 1.0), (4.86, 0.75),
              (4.8, 0.27)),
        glass=((0.16, 1.15), (0.24, 1.8), (2.46, 1.84), (3.1, 1.52), (3.74, 1.14)),
        pillars=(1.2, 2.3, 3.05), doors=(1.2, 2.3, 3.4), wheels=((0.9, 0.34), (3.9, 0.34)), lamp=0.9,
        details=(Part("dark", ((0.2, 1.05), (1.2, 1.05)), 0.035),),
    ),
    CarModel(
        "Nibble One Micro 2012",
        body=((0.06, 0.3), (0, 0.8), (0.1, 1.45), (0.5, 1.62), (1.4, 1.6), (1.98, 1.06), (2.4, 0.92), (2.52, 0.7),
              (2.48, 0.3)),
        glass=((0.78, 1.0), (0.74, 1.48), (1.34, 1.48), (1.8, 1.0)),
        pillars=(), doors=(0.8, 1.8), wheels=((0.42, 0.31), (2.08, 0.31)), lamp=0.82,
        details=(Part("accent", ((0.66, 0.34), (0.68, 0.98), (0.56, 1.56)), 0.13),),
    ),
    CarModel(
        "Regalis Imperator Limousine 2008",
        body=((0.06, 0.25), (0, 0.7), (0.04, 1.0), (0.95, 1.04), (1.55, 1.44), (6.2, 1.45), (6.88, 1.03), (8.1, 0.92),
              (8.4, 0.75), (8.35, 0.25)),
        glass=((1.08, 1.03), (1.6, 1.37), (6.14, 1.38), (6.68, 1.02)),
        pillars=(2.2, 3.4, 4.6, 5.6), doors=(1.3, 2.2, 5.6, 6.6), wheels=((1.0, 0.36), (7.3, 0.36)), lamp=0.82,
        details=(Part("chrome", ((0.3, 0.48), (8.1, 0.48)), 0.06), Part("chrome", ((1.1, 1.0), (6.7, 1.0)), 0.04)),
    ),
    CarModel(
        "Metrolux Liner Bus 2011",
        body=((0.02, 0.3), (0, 3.0), (0.2, 3.12), (9.9, 3.12), (10.25, 2.8), (10.45, 1.3), (10.42, 0.3)),
        glass=((0.3, 1.5), (0.3, 2.7), (9.95, 2.7), (10.2, 1.5)),
        pillars=(1.5, 2.7, 3.9, 5.1, 6.3, 7.5, 8.7), doors=(), wheels=((2.3, 0.5), (7.7, 0.5)), lamp=0.8,
        details=(Part("accent", ((0.05, 1.2), (10.4, 1.2)), 0.28), Part("glass", rectangle(8.75, 0.45, 9.6, 2.7)),
                 Part("shade", ((9.17, 0.45), (9.17, 2.7)), 0.08), Part("shade", ((8.72, 0.42), (8.72, 2.7)), 0.08),
                 Part("shade", ((9.63, 0.42), (9.63, 2.7)), 0.08)),
    ),
    CarModel(
        "Kargomat Cube Box Truck 2010",
        body=((0.02, 0.5), (0, 1.0), (4.55, 1.0), (4.52, 2.45), (5.55, 2.48), (6.0, 1.5), (6.3, 1.35), (6.35, 0.42)),
        glass=((4.9, 1.5), (4.9, 2.24), (5.46, 2.24), (5.82, 1.48)),
        pillars=(), doors=(4.8, 5.9), wheels=((1.0, 0.46), (2.0, 0.46), (5.45, 0.46)), lamp=0.78,
        details=(Part("panel", rectangle(0, 0.9, 4.42, 3.15)), Part("chrome", ((0.05, 0.94), (4.38, 0.94)), 0.1),
                 Part("accent", rectangle(0.6, 1.5, 3.8, 2.3)), Part("dark", ((2.5, 0.62), (4.9, 0.62)), 0.3)),
    ),
    CarModel(
        "Ladybel 1200 Classic 1967",
        body=((0.3, 0.3), (0.15, 0.7), (0.4, 1.15), (0.95, 1.55), (1.75, 1.62), (2.35, 1.48), (2.65, 1.06), (3.35, 1.0),
              (3.75, 0.75), (3.8, 0.3)),
        glass=((0.95, 1.12), (1.2, 1.43), (1.65, 1.5), (2.2, 1.4), (2.45, 1.1)),
        pillars=(1.5,), doors=(1.5, 2.5), wheels=((0.78, 0.34), (3.2, 0.34)), lamp=0.7,
        details=(Part("shade", ((0.02, 0.34), (0.15, 0.78), (0.7, 0.96), (1.25, 0.78), (1.5, 0.34))),
                 Part("shade", ((2.5, 0.34), (2.75, 0.78), (3.25, 0.98), (3.8, 0.86), (4.05, 0.34))),
                 Part("lamp", rectangle(3.68, 0.66, 3.95, 0.92)), Part("chrome", ((1.4, 0.33), (2.6, 0.33)), 0.07),
                 Part("chrome", rectangle(-0.14, 0.4, 0.22, 0.52)), Part("chrome", rectangle(3.85, 0.4, 4.18, 0.52))),
    ),
    CarModel(
        "Mudlark Scout Open 4x4 2007",
        body=((0.02, 0.55), (0, 1.18), (0.85, 1.18), (1.1, 0.94), (2.0, 0.94), (2.2, 1.24), (3.5, 1.2), (3.65, 1.1),
              (3.65, 0.55)),
        glass=((2.2, 1.24), (2.05, 1.84), (2.14, 1.84), (2.34, 1.22)),
        pillars=(), doors=(), wheels=((0.75, 0.48), (3.0, 0.48)), lamp=1.0,
        behind=(Part("rubber", rectangle(-0.28, 0.65, 0.1, 1.42)), Part("dark", ((1.15, 1.88), (2.08, 1.84)), 0.07),
                Part("dark", ((0.1, 1.0), (0.25, 1.84), (1.2, 1.88)), 0.09),
                Part("dark", ((1.2, 1.9), (1.1, 0.95)), 0.09), Part("dark", ((1.95, 0.9), (1.82, 1.3)), 0.06),
                Part("seat", ((1.1, 0.85), (1.06, 1.48), (1.24, 1.5), (1.42, 0.85))),
                Part("dark", ((2.25, 1.15), (2.05, 1.86)), 0.09)),
        details=(Part("dark", ((0.3, 0.98), (1.2, 0.98)), 0.12), Part("dark", ((2.5, 1.02), (3.55, 1.02)), 0.12)),
    ),
)
# fmt: on
