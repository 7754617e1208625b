"""Cars, vans and buses: a side profile extruded across the width, with windows, wheels and lights."""

import itertools
import math
from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np

from .camera import Floats
from .classes import CAR
from .painter import Colour, Painter, ellipse, stack, tint
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
HALF_WIDTH = {"hatch": 0.85, "saloon": 0.87, "suv": 0.92, "van": 0.97, "bus": 1.22}
BUS_PAINT: tuple[Colour, ...] = ((150, 30, 28), (180, 180, 176), (40, 70, 130))
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
        return HALF_WIDTH[self.kind]

    def at(self, local: Floats) -> Floats:
        """Local points (..., 3), along, to its right and up, in the world."""
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        along, right, up = local[..., 0], local[..., 1], local[..., 2]
        out = np.empty_like(local)
        out[..., 0] = self.x + along * sin + right * cos
        out[..., 1] = up
        out[..., 2] = self.z + along * cos - right * sin
        return out

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
    if not painter.sees(vehicle.footprint(0.0)):
        return
    rng = Random(vehicle.seed)
    painter.begin(CAR, vehicle.z, texture=0.04)
    body = vary(rng, rng.choice(BUS_PAINT if vehicle.kind == "bus" else PAINT), 0.25)
    solid, details = _shapes(vehicle.kind)
    painter.faces(vehicle.at(solid), _solid_colours(vehicle, body, light), cull=True)
    painter.faces(vehicle.at(details), _detail_colours(rng, light), solid=False, cull=True)


@cache
def _shapes(kind: str) -> tuple[Floats, Floats]:
    """Local polygons of a kind: the solid parts (22, 12, 3), and the details that lie on them (18, 4, 3).

    Solid: underbody (rear, front, left, right), the strips, right and left flank, tyre and hub of four wheels.
    Details: rear window, windscreen, tail lamps, indicators, headlamps, plates, grille, two panes a side.
    """
    corners = _corners(kind)
    solid: list[Floats] = _underbody(corners)
    solid += [_patch(corners, strip, -1, 1, 0, 1) for strip in range(8)]
    solid += [corners, _mirror(corners)]
    wheels = _wheels(kind, corners)
    solid += wheels + [_mirror(wheel) for wheel in wheels]
    details = [_patch(corners, 2, -0.86, 0.86, 0.12, 0.92), _patch(corners, 4, -0.9, 0.9, 0.06, 0.94)]
    for strip, t0, t1 in ((1, 0.05, 0.85), (1, -0.2, 0.05), (6, 0.1, 0.9)):
        details += [_patch(corners, strip, s0, s1, t0, t1) for s0, s1 in ((-0.97, -0.62), (0.62, 0.97))]
    details += [_patch(corners, 0, -0.3, 0.3, 0.55, 0.85), _patch(corners, 7, -0.3, 0.3, 0.35, 0.65)]
    details.append(_patch(corners, 6, -0.5, 0.5, 0.2, 0.8))
    panes = _panes(corners, both=kind != "van")
    details += panes + [_mirror(pane) for pane in panes]
    return stack(solid), stack(details)


def _solid_colours(vehicle: Vehicle, body: Colour, light: Light) -> list[Colour]:
    cos, sin = math.cos(vehicle.heading), math.sin(vehicle.heading)
    colours: list[Colour] = [(13.0, 13.0, 14.0)] * 4
    profile = PROFILES[vehicle.kind]
    for strip, (start, end) in enumerate(itertools.pairwise(profile)):
        along, up = end[0] - start[0], end[1] - start[1]
        size = math.hypot(along, up)
        shade = light.on(-up / size * sin, along / size, -up / size * cos)
        mirror = 40.0 if strip in {3, 5} else 12.0
        paint = tint(body, 0.55 if strip in {0, 7} else 1.0)
        colours.append(tint((paint[0] + mirror, paint[1] + mirror, paint[2] + mirror), shade))
    colours += [tint(body, 0.95 * light.on(side * cos, 0, -side * sin)) for side in (1, -1)]
    return colours + [(15.0, 15.0, 16.0), (92.0, 94.0, 96.0)] * 4


def _detail_colours(rng: Random, light: Light) -> list[Colour]:
    glass = rng.uniform(14, 55)
    pane = (glass * 0.95, glass, glass * 1.06)
    red = (rng.uniform(120, 210), 22.0, 20.0)
    lamp = rng.choice(((200.0, 202.0, 196.0), (225.0, 224.0, 210.0), (110.0, 114.0, 118.0)))
    rear, front = tint((205, 180, 60), light.on(0, 0, -1)), (200.0, 200.0, 195.0)
    windows = [tint(pane, rng.uniform(0.8, 1.8))] * 4
    shield = tint(pane, rng.uniform(1.0, 2.4))
    return [
        pane,
        shield,
        red,
        red,
        (170, 84, 40),
        (170, 84, 40),
        lamp,
        lamp,
        rear,
        front,
        (24, 24, 26),
        *windows,
    ]


def _corners(kind: str) -> Floats:
    """The profile's corners on the right-hand side, (9, 3); the roof is narrower than the body."""
    narrow = 0.95 if kind in {"van", "bus"} else 0.76
    widths = [HALF_WIDTH[kind] * (narrow if k in {3, 4} else 0.97 if k in {0, 8} else 1.0) for k in range(9)]
    return np.array([(a, w, u) for (a, u), w in zip(PROFILES[kind], widths, strict=True)])


def _mirror(points: Floats) -> Floats:
    """Points on the right-hand side (K, 3) moved to the left, in the order that keeps them facing outward."""
    return np.asarray(points[::-1] * np.array([1.0, -1.0, 1.0]))


def _patch(corners: Floats, strip: int, s0: float, s1: float, t0: float, t1: float) -> Floats:
    """A rectangle on a strip: s in [-1, 1] from left to right, t in [0, 1] from the rear corner to the next."""
    low = corners[strip] + t0 * (corners[strip + 1] - corners[strip])
    high = corners[strip] + t1 * (corners[strip + 1] - corners[strip])
    right, left = np.array([1.0, s1, 1.0]), np.array([1.0, s0, 1.0])
    return np.array([low * right, low * left, high * left, high * right])


def _underbody(corners: Floats) -> list[Floats]:
    """The dark space below the body: rear, front, right and left."""
    rear, front, half = corners[0, 0] + 0.1, corners[-1, 0] - 0.1, corners[1, 1] - 0.08
    low, high = 0.16, 0.5
    right = [(rear, half, low), (rear, half, high), (front, half, high), (front, half, low)]
    behind = [(rear, half, low), (rear, -half, low), (rear, -half, high), (rear, half, high)]
    before = [(front, -half, low), (front, half, low), (front, half, high), (front, -half, high)]
    return [np.array(behind), np.array(before), np.array(right), _mirror(np.array(right))]


def _wheels(kind: str, corners: Floats) -> list[Floats]:
    """Tyre and hub of the two right-hand wheels, (12, 3) each."""
    radius = {"bus": 0.46, "suv": 0.34, "van": 0.34}.get(kind, 0.31)
    discs = []
    for along in (corners[0, 0] * 0.66, corners[-1, 0] * 0.66):
        for part in (1.0, 0.58):
            flat = ellipse(along, radius, radius * part, radius * part)[::-1]
            discs.append(np.stack([flat[:, 0], np.full(12, corners[1, 1] * 1.005), flat[:, 1]], axis=-1))
    return discs


def _panes(corners: Floats, both: bool) -> list[Floats]:
    """The two side windows on the right; a van has only the front one, given twice."""
    belt_rear, roof_rear, roof_front, belt_front = corners[2:6]
    sill = 0.06 * (roof_rear - belt_rear)
    middle = corners[2:6].mean(axis=0)
    panes = []
    for s0, s1 in ((0.08, 0.48) if both else (0.53, 0.93), (0.53, 0.93)):
        low = [belt_rear + s * (belt_front - belt_rear) + sill for s in (s0, s1)]
        high = [roof_rear + s * (roof_front - roof_rear) for s in (s0, s1)]
        pane = np.array([low[0], high[0], high[1], low[1]]) * 0.94 + middle * 0.06
        panes.append(pane * np.array([1.0, 1.005, 1.0]))
    return panes
