"""Cars, vans and buses: a side profile extruded across the width, with windows, wheels and lights."""

import math
from dataclasses import dataclass
from random import Random

import numpy as np

from .camera import Floats
from .classes import CAR
from .painter import Colour, Painter, ellipse, tint
from .scene import Light, pick, vary

Point = tuple[float, float, float]

# Nine corners (along, up) in metres from the rear bumper over the roof to the front bumper. The strips between
# them: 0 bumper, 1 boot lid, 2 rear window, 3 roof, 4 windscreen, 5 bonnet, 6 lamps, 7 front bumper.
PROFILES: dict[str, tuple[tuple[float, float], ...]] = {
    "hatch": (
        (-1.9, 0.3),
        (-1.98, 0.72),
        (-1.9, 0.95),
        (-1.5, 1.43),
        (0.15, 1.46),
        (0.9, 1.0),
        (1.75, 0.84),
        (1.95, 0.6),
        (1.92, 0.26),
    ),
    "saloon": (
        (-2.2, 0.3),
        (-2.26, 0.75),
        (-1.75, 0.98),
        (-1.05, 1.4),
        (0.15, 1.42),
        (0.95, 0.98),
        (2.0, 0.82),
        (2.25, 0.58),
        (2.2, 0.25),
    ),
    "suv": (
        (-2.2, 0.4),
        (-2.26, 0.95),
        (-2.2, 1.15),
        (-1.95, 1.72),
        (0.2, 1.75),
        (0.9, 1.2),
        (2.05, 1.06),
        (2.25, 0.75),
        (2.22, 0.36),
    ),
    "van": (
        (-2.4, 0.35),
        (-2.45, 1.0),
        (-2.42, 1.15),
        (-2.35, 2.15),
        (1.0, 2.2),
        (1.75, 1.3),
        (2.4, 1.08),
        (2.55, 0.65),
        (2.5, 0.3),
    ),
    "bus": (
        (-5.0, 0.35),
        (-5.05, 1.2),
        (-5.05, 1.35),
        (-4.95, 3.0),
        (4.9, 3.0),
        (5.0, 1.25),
        (5.03, 1.1),
        (5.03, 0.7),
        (5.0, 0.35),
    ),
}
PAINT: tuple[Colour, ...] = (
    (28, 29, 32),
    (40, 44, 52),
    (92, 95, 100),
    (140, 143, 148),
    (176, 178, 180),
    (205, 206, 206),
    (36, 48, 92),
    (30, 38, 62),
    (124, 28, 26),
    (90, 22, 24),
    (30, 66, 46),
    (62, 84, 116),
    (150, 130, 84),
)


@dataclass(frozen=True)
class Vehicle:
    """A vehicle at (x, z); heading 0 drives away from the camera, pi towards it."""

    x: float
    z: float
    heading: float
    kind: str
    seed: int

    @property
    def half_width(self) -> float:
        """Half its width in metres."""
        return {"van": 0.97, "bus": 1.22, "suv": 0.92}.get(self.kind, 0.85)

    def at(self, local: Floats) -> Floats:
        """Local points (..., 3), along, to its right and up, in the world."""
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        along, right, up = local[..., 0], local[..., 1], local[..., 2]
        return np.stack([self.x + along * sin + right * cos, up, self.z + along * cos - right * sin], axis=-1)

    def footprint(self, spread: float) -> Floats:
        """The ground that its shadow covers, (4, 3)."""
        profile = PROFILES[self.kind]
        rear, front, half = profile[0][0] - spread, profile[-1][0] + spread, self.half_width + spread
        corners = [(rear, -half, 0.0), (front, -half, 0.0), (front, half, 0.0), (rear, half, 0.0)]
        return self.at(np.array(corners))


def sample_vehicle(x: float, z: float, heading: float, rng: Random) -> Vehicle:
    """A vehicle of a random kind; buses keep their distance, or one would fill the picture."""
    kind = pick(rng, hatch=0.45, saloon=0.25, suv=0.12, van=0.13, bus=0.05)
    if kind == "bus" and z < 18:
        kind = "van"
    return Vehicle(x, z, heading + rng.gauss(0, 0.03), kind, rng.getrandbits(32))


def paint_vehicle(painter: Painter, vehicle: Vehicle, light: Light) -> None:
    """Paint one vehicle."""
    if painter.scale(vehicle.x, vehicle.z) == 0:
        return
    rng = Random(vehicle.seed)
    painter.begin(CAR, vehicle.z, texture=0.03)
    body = vary(rng, rng.choice(PAINT), 0.2)
    if vehicle.kind == "bus":
        body = vary(rng, rng.choice(((150, 30, 28), (180, 180, 176), (40, 70, 130))), 0.2)
    _wheels(painter, vehicle)
    _body(painter, vehicle, body, light)
    _details(painter, vehicle, rng, light)


def _corners(vehicle: Vehicle) -> Floats:
    """The profile's corners on the right-hand side, (9, 3); the roof is narrower than the body."""
    half = vehicle.half_width
    narrow = 0.95 if vehicle.kind in {"van", "bus"} else 0.76
    widths = [half * (narrow if k in {3, 4} else 0.97 if k in {0, 8} else 1.0) for k in range(9)]
    return np.array([(a, w, u) for (a, u), w in zip(PROFILES[vehicle.kind], widths, strict=True)])


def _mirror(points: Floats) -> Floats:
    """Points on the right-hand side (K, 3) moved to the left, in the order that keeps them facing outward."""
    return points[::-1] * np.array([1.0, -1.0, 1.0])


def _patch(corners: Floats, strip: int, s0: float, s1: float, t0: float, t1: float) -> Floats:
    """A rectangle on a strip: s in [-1, 1] from left to right, t in [0, 1] from the rear corner to the next."""
    low = corners[strip] + t0 * (corners[strip + 1] - corners[strip])
    high = corners[strip] + t1 * (corners[strip + 1] - corners[strip])
    right, left = np.array([1.0, s1, 1.0]), np.array([1.0, s0, 1.0])
    return np.array([low * right, low * left, high * left, high * right])


def _body(painter: Painter, vehicle: Vehicle, body: Colour, light: Light) -> None:
    corners = _corners(vehicle)
    cos, sin = math.cos(vehicle.heading), math.sin(vehicle.heading)
    strips, colours = [], []
    for k in range(8):
        strips.append(_patch(corners, k, -1, 1, 0, 1))
        along, up = corners[k + 1, 0] - corners[k, 0], corners[k + 1, 2] - corners[k, 2]
        size = math.hypot(along, up)
        shade = light.on(-up / size * sin, along / size, -up / size * cos)
        mirror = 40.0 if k in {3, 5} else 14.0
        colours.append(tuple(c * shade + mirror * shade for c in tint(body, 0.55 if k in {0, 7} else 1.0)))
    painter.faces(vehicle.at(np.array(strips)), colours, cull=True)
    for side in (1, -1):
        flank = corners if side == 1 else _mirror(corners)
        shade = light.on(side * cos, 0, -side * sin)
        painter.faces(vehicle.at(flank)[None], [tint(body, shade * 0.95)], cull=True)


def _wheels(painter: Painter, vehicle: Vehicle) -> None:
    """Dark underbody and four wheels; the wheels on the far side show below it."""
    profile = PROFILES[vehicle.kind]
    rear, front, half = profile[0][0], profile[-1][0], vehicle.half_width - 0.08
    under = []
    for a, b in (((rear + 0.1, half), (rear + 0.1, -half)), ((front - 0.1, -half), (front - 0.1, half))):
        under.append([(*a, 0.16), (*b, 0.16), (*b, 0.5), (*a, 0.5)])
    under.append([(front, -half, 0.16), (rear, -half, 0.16), (rear, -half, 0.5), (front, -half, 0.5)])
    under.append([(rear, half, 0.16), (front, half, 0.16), (front, half, 0.5), (rear, half, 0.5)])
    painter.faces(vehicle.at(np.array(under)), [(14, 14, 15)] * 4)


def _details(painter: Painter, vehicle: Vehicle, rng: Random, light: Light) -> None:
    corners = _corners(vehicle)
    glass = rng.uniform(18, 60)
    pane = (glass * 0.95, glass, glass * 1.06)
    sky = rng.uniform(1.0, 2.6)
    red = (150 + 60 * rng.random(), 22, 20)
    lamp = (200.0, 202, 196) if rng.random() < 0.6 else (110.0, 114, 118)
    polygons = [_patch(corners, 2, -0.86, 0.86, 0.12, 0.92), _patch(corners, 4, -0.9, 0.9, 0.06, 0.94)]
    colours: list[Colour] = [pane, tint(pane, sky)]
    for s0, s1 in ((-0.97, -0.62), (0.62, 0.97)):
        polygons += [_patch(corners, 1, s0, s1, 0.05, 0.85), _patch(corners, 6, s0, s1, 0.1, 0.9)]
        colours += [red, lamp]
        polygons.append(_patch(corners, 1, s0 * 1.0, s1 * 0.98, -0.15, 0.05))
        colours.append((180, 90, 40))
    polygons += [_patch(corners, 0, -0.3, 0.3, 0.55, 0.85), _patch(corners, 7, -0.3, 0.3, 0.35, 0.65)]
    colours += [tint((205, 180, 60), light.on(0, 0, -1)), (205, 205, 200)]
    polygons.append(_patch(corners, 6, -0.5, 0.5, 0.2, 0.8))
    colours.append((24, 24, 26))
    painter.faces(vehicle.at(np.array(polygons)), colours, solid=False, cull=True)
    for side in (1, -1):
        _flank(painter, vehicle, corners, tint(pane, rng.uniform(0.8, 1.8)), side)


def _flank(painter: Painter, vehicle: Vehicle, corners: Floats, pane: Colour, side: int) -> None:
    """Windows and wheels of one side."""
    belt_rear, roof_rear, roof_front, belt_front = corners[2], corners[3], corners[4], corners[5]
    sill = 0.06 * (roof_rear - belt_rear)
    band = np.array([belt_rear, roof_rear, roof_front, belt_front])
    middle = band.mean(axis=0)
    panes = []
    for s0, s1 in ((0.08, 0.48), (0.53, 0.93)):
        low = [band[0] + s * (band[3] - band[0]) + sill for s in (s0, s1)]
        high = [band[1] + s * (band[2] - band[1]) for s in (s0, s1)]
        panes.append(np.array([low[0], high[0], high[1], low[1]]) * 0.94 + middle * 0.06)
    if vehicle.kind == "van":
        panes = panes[1:]
    outside = np.array([1.0, 1.005, 1.0])
    shapes = [pane * outside for pane in panes]
    shapes = [shape if side == 1 else _mirror(shape) for shape in shapes]
    painter.faces(vehicle.at(np.array(shapes)), [pane] * len(shapes), solid=False, cull=True)
    profile = PROFILES[vehicle.kind]
    radius = 0.46 if vehicle.kind == "bus" else 0.33 if vehicle.kind in {"suv", "van"} else 0.3
    tyres: list[Floats] = []
    inks: list[Colour] = []
    for along in (profile[0][0] * 0.66, profile[-1][0] * 0.66):
        for part, ink in ((1.0, (15.0, 15.0, 16.0)), (0.58, (96.0, 98.0, 100.0))):
            flat = ellipse(along, radius, radius * part, radius * part)[::-1]
            disc = np.stack([flat[:, 0], np.full(12, vehicle.half_width * 1.005), flat[:, 1]], axis=-1)
            tyres.append(disc if side == 1 else _mirror(disc))
            inks.append(ink)
    painter.faces(vehicle.at(np.array(tyres)), inks, cull=True)
