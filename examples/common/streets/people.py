"""Pedestrians and bicyclists: flat figures that face the camera."""

import math
from dataclasses import dataclass
from random import Random

import numpy as np

from .camera import Floats
from .classes import BICYCLIST, PEDESTRIAN
from .painter import Colour, Painter, ellipse, stack, tint, upright
from .scene import Light, vary

CLOTHES: tuple[Colour, ...] = (
    (24, 24, 28),
    (34, 36, 48),
    (44, 40, 38),
    (60, 62, 70),
    (30, 40, 72),
    (84, 74, 60),
    (120, 36, 36),
    (50, 64, 52),
    (150, 150, 148),
    (104, 110, 124),
    (36, 34, 32),
)
SKIN: tuple[Colour, ...] = ((172, 128, 106), (150, 108, 86), (96, 66, 50), (186, 146, 124))
HAIR: tuple[Colour, ...] = ((30, 24, 20), (56, 40, 30), (96, 76, 54), (120, 116, 112))


@dataclass(frozen=True)
class Person:
    """A pedestrian standing or walking at (x, z), or a bicyclist; `side_on` is true of one seen from the side."""

    x: float
    z: float
    rides: bool
    side_on: bool
    seed: int


class Figure:
    """Collects the parts of a flat figure, (sideways, up) in metres, and paints them at once."""

    def __init__(self) -> None:
        self.parts: list[tuple[Floats, Colour]] = []

    def add(self, corners: list[tuple[float, float]] | Floats, colour: Colour) -> None:
        """A polygon."""
        self.parts.append((np.asarray(corners, dtype=np.float64), colour))

    def limb(self, a: tuple[float, float], b: tuple[float, float], width: float, colour: Colour) -> None:
        """A bar from a to b."""
        along = math.hypot(b[0] - a[0], b[1] - a[1]) or 1.0
        nx, ny = (b[1] - a[1]) / along * width / 2, (a[0] - b[0]) / along * width / 2
        self.add(
            [(a[0] - nx, a[1] - ny), (a[0] + nx, a[1] + ny), (b[0] + nx, b[1] + ny), (b[0] - nx, b[1] - ny)],
            colour,
        )

    def paint(self, painter: Painter, x: float, z: float, shade: float, flip: float) -> None:
        """Paint the parts in the order in which they were added."""
        shape = stack([corners for corners, _ in self.parts])
        shape[..., 0] *= flip
        painter.faces(upright(x, z, shape), [tint(colour, shade) for _, colour in self.parts])


def paint_person(painter: Painter, person: Person, light: Light) -> None:
    """Paint one pedestrian or bicyclist."""
    if person.z < 2.0 or not painter.shows(person.x, person.z, 1.0):
        return
    rng = Random(person.seed)
    painter.begin(BICYCLIST if person.rides else PEDESTRIAN, person.z, texture=0.08)
    shade = light.on(0, 0, -1) * rng.uniform(0.4, 0.85)
    flip = rng.choice((-1.0, 1.0))
    figure = Figure()
    if not person.rides:
        _walker(figure, rng)
    elif person.side_on:
        _claim_wheels(painter, person, 0.56)
        _rider_side(figure, rng)
    else:
        _rider_behind(figure, rng)
    figure.paint(painter, person.x, person.z, shade, flip)


def _walker(figure: Figure, rng: Random) -> None:
    tall = rng.uniform(1.5, 1.88) * (0.7 if rng.random() < 0.07 else 1.0)
    broad = tall * rng.uniform(0.125, 0.165)
    legs, coat = vary(rng, rng.choice(CLOTHES), 0.25), vary(rng, rng.choice(CLOTHES), 0.25)
    skin, hair = vary(rng, rng.choice(SKIN), 0.1), vary(rng, rng.choice(HAIR), 0.2)
    hip, shoulder = tall * 0.5, tall * 0.83
    stride = tall * rng.uniform(0.01, 0.17)
    lean = rng.uniform(-0.03, 0.03) * tall
    for foot in (-stride, stride):
        knee = foot * 0.55 + lean, hip * 0.52
        side = math.copysign(broad * 0.3, foot)
        figure.limb((side, hip), (knee[0] + side * 0.5, knee[1]), broad * 0.75, legs)
        figure.limb((knee[0] + side * 0.5, knee[1]), (foot + side * 0.3, 0.06), broad * 0.58, legs)
        figure.add(
            [(foot - 0.08, 0.0), (foot - 0.08, 0.09), (foot + 0.13, 0.07), (foot + 0.13, 0.0)], (26, 22, 20)
        )
    hem = hip - tall * rng.choice((0.0, 0.03, 0.14, 0.2))
    swing = rng.uniform(-0.12, 0.12) * tall
    for arm in (-1, 1):
        elbow = (arm * broad * 1.05 + arm * swing * 0.4, tall * 0.63)
        figure.limb((arm * broad * 0.85, shoulder - 0.04), elbow, broad * 0.5, tint(coat, 0.85))
        figure.limb(elbow, (elbow[0] + arm * swing * 0.5, tall * 0.47), broad * 0.42, tint(coat, 0.85))
    torso = [
        (-broad * 0.9, hem),
        (-broad, shoulder - 0.08),
        (-broad * 0.6, shoulder),
        (broad * 0.6, shoulder),
    ]
    figure.add([*torso, (broad, shoulder - 0.08), (broad * 0.9, hem)], coat)
    if rng.random() < 0.35:
        bag = vary(rng, rng.choice(CLOTHES), 0.4)
        at = rng.choice((-1, 1)) * broad * rng.uniform(0.2, 1.3)
        figure.add(
            [(at - 0.14, hip - 0.1), (at - 0.12, hip + 0.3), (at + 0.12, hip + 0.3), (at + 0.14, hip - 0.1)],
            bag,
        )
    _head(figure, lean * 0.5, tall * 0.925, tall * 0.062, skin, hair)


def _head(figure: Figure, x: float, y: float, radius: float, skin: Colour, hair: Colour) -> None:
    figure.limb((x, y - radius * 1.7), (x, y - radius * 0.4), radius, skin)
    figure.add(ellipse(x, y, radius * 0.9, radius * 1.15), hair)
    figure.add(ellipse(x, y - radius * 0.3, radius * 0.72, radius * 0.85), skin)


def _rider_behind(figure: Figure, rng: Random) -> None:
    """A rider seen from behind or in front."""
    coat, legs = vary(rng, rng.choice(CLOTHES), 0.25), vary(rng, rng.choice(CLOTHES), 0.25)
    if rng.random() < 0.15:
        coat = (190, 200, 60)
    frame = vary(rng, (40, 40, 46), 0.4)
    up = rng.uniform(-0.05, 0.08)
    figure.add(ellipse(0, 0.34, 0.045, 0.34), (18, 18, 19))
    figure.limb((0, 0.3), (0, 0.95), 0.07, frame)
    figure.limb((-0.28, 1.02), (0.28, 1.02), 0.05, frame)
    pedal = rng.uniform(-0.13, 0.13)
    for side in (-1, 1):
        figure.limb((side * 0.1, 0.95 + up), (side * 0.14, 0.58 + side * pedal), 0.15, legs)
        figure.limb((side * 0.14, 0.58 + side * pedal), (side * 0.12, 0.22 + side * pedal), 0.12, legs)
        figure.limb((side * 0.21, 1.4 + up), (side * 0.29, 1.03), 0.1, tint(coat, 0.85))
    torso = [(-0.17, 0.88 + up), (-0.24, 1.4 + up), (-0.14, 1.49 + up), (0.14, 1.49 + up)]
    figure.add([*torso, (0.24, 1.4 + up), (0.17, 0.88 + up)], coat)
    cap = rng.choice((rng.choice(HAIR), (200, 200, 196), (150, 40, 36), (34, 34, 38)))
    _head(figure, 0.0, 1.62 + up, 0.11, vary(rng, rng.choice(SKIN), 0.1), cap)


def _rider_side(figure: Figure, rng: Random) -> None:
    """A rider seen from the side."""
    coat, legs = vary(rng, rng.choice(CLOTHES), 0.25), vary(rng, rng.choice(CLOTHES), 0.25)
    frame = vary(rng, rng.choice(CLOTHES), 0.4)
    for x in (-0.52, 0.52):
        for corner in range(12):
            a, b = corner * math.pi / 6, (corner + 1) * math.pi / 6
            start = (x + 0.32 * math.cos(a), 0.34 + 0.32 * math.sin(a))
            figure.limb(start, (x + 0.32 * math.cos(b), 0.34 + 0.32 * math.sin(b)), 0.05, (20, 20, 21))
    bars = (((-0.52, 0.34), (-0.15, 0.85)), ((-0.15, 0.85), (0.4, 0.82)), ((0.4, 0.95), (0.52, 0.34)))
    for top, bottom in bars:
        figure.limb(top, bottom, 0.055, frame)
    figure.limb((0.0, 0.3), (-0.15, 0.85), 0.055, frame)
    figure.limb((0.0, 0.3), (0.4, 0.82), 0.055, frame)
    knee = rng.uniform(0.12, 0.28)
    for foot in ((0.06, 0.15), (-0.02, 0.42)):
        figure.limb((-0.16, 0.95), (knee, 0.66 + foot[1] * 0.3), 0.16, legs)
        figure.limb((knee, 0.66 + foot[1] * 0.3), foot, 0.12, legs)
    lean = rng.uniform(0.08, 0.3)
    shoulder = (-0.16 + lean, 1.45)
    figure.limb((-0.17, 0.9), shoulder, 0.32, coat)
    figure.limb((shoulder[0], 1.38), (0.4, 1.0), 0.11, tint(coat, 0.85))
    _head(figure, shoulder[0] + 0.08, 1.66, 0.11, vary(rng, rng.choice(SKIN), 0.1), rng.choice(HAIR))


def _claim_wheels(painter: Painter, person: Person, apart: float) -> None:
    """The wheels count as filled discs, as CamVid's annotators drew them."""
    discs = [ellipse(x, 0.34, 0.34, 0.34) for x in (-apart, apart)]
    painter.claim(upright(person.x, person.z, np.array(discs)))
