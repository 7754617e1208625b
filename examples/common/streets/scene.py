"""What a street is before it is drawn: the light, the camera and the ground plan, drawn from one seed."""

import math
from dataclasses import dataclass
from random import Random

from .camera import Camera
from .painter import Colour, tint


@dataclass(frozen=True)
class Light:
    """The weather and the exposure.

    Attributes:
        kind: "overcast", "clear", "dusk" or "rain".
        zenith: sky colour at the top.
        horizon: sky colour at the horizon; also the colour of the haze.
        sun: unit vector towards the sun (x, y, z).
        direct: strength of the sun beside the sky's light.
        visibility: metres after which 63 % of a colour is haze.
        exposure: factor on everything but the sky.
        cast: factor per colour channel.
    """

    kind: str
    zenith: Colour
    horizon: Colour
    sun: tuple[float, float, float]
    direct: float
    visibility: float
    exposure: float
    cast: Colour

    def on(self, x: float, y: float, z: float) -> float:
        """Brightness of a surface with this unit normal; about 1 on average."""
        facing = max(0.0, x * self.sun[0] + y * self.sun[1] + z * self.sun[2])
        return 0.75 + 0.15 * y + self.direct * (1.5 * facing - 0.3)


@dataclass(frozen=True)
class Side:
    """One side of the street; distances are to the right of the camera, so negative on the left.

    Attributes:
        sign: -1 left, 1 right.
        kerb: x of the kerb.
        pavement: x of the pavement's outer edge.
        face: x of the line of buildings.
        verge: what lies between the pavement and the buildings: "pavement", "grass" or "asphalt".
        openings: stretches (z0, z1) where a side street interrupts the pavement and the buildings.
        greenery: chance that a plot has trees instead of a building.
    """

    sign: int
    kerb: float
    pavement: float
    face: float
    verge: str
    openings: tuple[tuple[float, float], ...]
    greenery: float

    def open_at(self, z: float, margin: float = 0.0) -> bool:
        """Whether a side street leaves here."""
        return any(z0 - margin < z < z1 + margin for z0, z1 in self.openings)


@dataclass(frozen=True)
class Street:
    """The ground plan: both sides and the distance in metres at which the view is closed."""

    left: Side
    right: Side
    end: float
    kind: str

    @property
    def sides(self) -> tuple[Side, Side]:
        """Left and right."""
        return self.left, self.right


def pick(rng: Random, **chances: float) -> str:
    """One of the names, with the given relative chances."""
    return rng.choices(list(chances), list(chances.values()))[0]


def vary(rng: Random, colour: Colour, amount: float = 0.12) -> Colour:
    """A colour near the given one: brightness and, less, hue."""
    shade = 1.0 + rng.uniform(-amount, amount)
    hue = amount / 3
    return tint(
        (colour[0] * (1 + rng.uniform(-hue, hue)), colour[1], colour[2] * (1 + rng.uniform(-hue, hue))), shade
    )


def sample_light(rng: Random) -> Light:
    """Weather and exposure; CamVid is mostly overcast or low winter sun, a fifth of it dusk."""
    kind = pick(rng, overcast=0.42, clear=0.33, dusk=0.18, rain=0.07)
    angle = rng.uniform(0, 2 * math.pi)
    rise = rng.uniform(0.25, 0.8)
    sun = (math.cos(angle) * math.cos(rise), math.sin(rise), math.sin(angle) * math.cos(rise))
    white = rng.uniform(244, 285)
    warm = rng.gauss(0, 0.025)
    if kind == "clear":
        red = rng.uniform(130, 255)
        zenith = (red, 255 - 0.55 * (255 - red), 258 - 0.15 * (255 - red))
        horizon = (white, white + 2, white + 4)
        direct, exposure, visibility = rng.uniform(0.25, 0.7), rng.uniform(0.75, 1.45), rng.uniform(250, 900)
    elif kind == "dusk":
        grey = rng.uniform(95, 190)
        zenith = (
            grey * rng.uniform(0.8, 0.95),
            grey * rng.uniform(0.92, 1.0),
            grey * rng.uniform(0.95, 1.05),
        )
        horizon = tint((grey, grey * 1.02, grey * 0.98), rng.uniform(1.1, 1.5))
        direct, exposure, visibility = rng.uniform(0, 0.1), rng.uniform(0.25, 0.6), rng.uniform(200, 700)
    elif kind == "rain":
        grey = rng.uniform(150, 230)
        zenith, horizon = (grey, grey * 1.01, grey * 1.02), (grey * 1.05, grey * 1.06, grey * 1.06)
        direct, exposure, visibility = 0.0, rng.uniform(0.6, 1.0), rng.uniform(60, 200)
    else:
        zenith = (white * rng.uniform(0.85, 1), white * rng.uniform(0.92, 1), white)
        horizon = (white, white, white)
        direct, exposure, visibility = rng.uniform(0, 0.2), rng.uniform(0.65, 1.4), rng.uniform(150, 700)
    return Light(kind, zenith, horizon, sun, direct, visibility, exposure, (1 + warm, 1.0, 1 - warm))


def sample_camera(rng: Random, size: tuple[int, int]) -> Camera:
    """A camera behind a windscreen: 1.2 to 1.7 m up, the horizon near the middle of the picture."""
    turning = rng.random() < 0.12
    return Camera(
        size=size,
        height=rng.uniform(1.15, 1.65),
        pitch=math.radians(rng.gauss(0.3, 1.2)),
        yaw=math.radians(rng.uniform(-18, 18) if turning else rng.gauss(0, 3.5)),
        roll=math.radians(rng.gauss(0, 0.7)),
        focal=rng.uniform(1.0, 1.4),
        bend=rng.gauss(0, 0.0006),
    )


def sample_street(rng: Random) -> Street:
    """The ground plan: a town street, an open junction or square, or a green road."""
    kind = pick(rng, town=0.74, open=0.14, green=0.12)
    lane = rng.uniform(2.7, 3.6)
    spare = {"town": 0.0, "open": rng.uniform(1, 8), "green": rng.uniform(0, 1)}[kind]
    left = _side(rng, -1, kind, rng.uniform(1.3, 2.6) + spare * rng.random() + 1.8 * (rng.random() < 0.35))
    right = _side(rng, 1, kind, lane + rng.uniform(0.8, 2.2) + spare + 2.0 * (rng.random() < 0.4))
    end = rng.uniform(35, 90) if kind == "open" else rng.uniform(55, 160)
    return Street(left, right, end, kind)


def _side(rng: Random, sign: int, kind: str, kerb: float) -> Side:
    width = rng.uniform(1.3, 3.6) if kind != "green" else rng.uniform(0.0, 2.2)
    setback = {
        "town": rng.choice((0.0, 0.0, 0.0, 2.5)),
        "open": rng.uniform(2, 12),
        "green": rng.uniform(5, 14),
    }[kind]
    verge = {
        "town": pick(rng, pavement=0.7, grass=0.3),
        "open": pick(rng, pavement=0.3, grass=0.25, asphalt=0.45),
        "green": pick(rng, grass=0.9, pavement=0.1),
    }[kind]
    openings = []
    z = rng.uniform(6, 60)
    while z < 140:
        wide = rng.uniform(5, 9)
        openings.append((z, z + wide))
        z += wide + rng.uniform(30, 90)
    return Side(
        sign=sign,
        kerb=sign * kerb,
        pavement=sign * (kerb + width),
        face=sign * (kerb + width + setback),
        verge=verge,
        openings=tuple(openings),
        greenery={"town": 0.07, "open": 0.3, "green": 0.7}[kind],
    )
