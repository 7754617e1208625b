"""Buildings: boxes with a roof, whose street front and near side carry windows, doors and shops."""

import math
from dataclasses import dataclass
from random import Random

import numpy as np

from .camera import Floats
from .classes import BUILDING
from .painter import Colour, Painter, rectangle, tint
from .scene import Light, Side, pick, vary

WALLS: dict[str, tuple[Colour, ...]] = {
    "brick": ((128, 92, 74), (150, 124, 96), (112, 84, 72), (142, 110, 84), (96, 78, 68)),
    "render": ((196, 192, 182), (176, 166, 148), (160, 158, 156), (205, 190, 160)),
    "stone": ((128, 124, 112), (106, 102, 96), (150, 142, 124)),
    "dark": ((74, 70, 68), (88, 74, 64), (64, 66, 70)),
}
SHOPS: tuple[Colour, ...] = (
    (40, 62, 110),
    (130, 34, 32),
    (34, 78, 56),
    (30, 30, 32),
    (190, 186, 176),
    (150, 120, 50),
)


@dataclass(frozen=True)
class Building:
    """One building on a plot of the street.

    Attributes:
        side: -1 left, 1 right, 0 across the end of the street.
        face: x of the front (side 0: z of the front).
        start, stop: extent along the street (side 0: along x).
        depth: extent away from the street.
        floors: number of storeys; floor_height their height in metres.
        roof: height of the roof's ridge above the eaves; 0 is flat.
        seed: of its details.
    """

    side: int
    face: float
    start: float
    stop: float
    depth: float
    floors: int
    floor_height: float
    roof: float
    seed: int

    @property
    def height(self) -> float:
        """Height of the eaves in metres."""
        return self.floors * self.floor_height + 0.4

    @property
    def far(self) -> float:
        """Depth at which it is painted: its far end, since what stands before it is nearer."""
        return self.face if self.side == 0 else self.stop


def row(side: Side, end: float, kind: str, rng: Random) -> tuple[list[Building], list[tuple[float, float]]]:
    """The plots of one side up to `end`: buildings, and the stretches (z0, z1) left to trees."""
    buildings: list[Building] = []
    green: list[tuple[float, float]] = []
    z = rng.uniform(-12, -4)
    floors = rng.choice((3, 3, 3, 4, 4)) if kind == "town" else rng.choice((2, 2, 3))
    while z < end:
        long = rng.uniform(5, 13) * (1 if kind == "town" else rng.uniform(1, 2))
        blocked = [z1 for z0, z1 in side.openings if z0 < z + long and z1 > z]
        if blocked:
            z = blocked[0] + 0.01
        elif rng.random() < side.greenery:
            green.append((z, z + long))
            z += long
        else:
            setback = rng.choice((0.0, 0.0, rng.uniform(0, 1.2)))
            tall = max(1, floors + rng.choice((-1, 0, 0, 0, 1)))
            roof = (
                rng.choice((0.0, 0.0, rng.uniform(1.2, 3.5))) if rng.random() < 0.95 else rng.uniform(6, 14)
            )
            seed = rng.getrandbits(32)
            face = side.face + side.sign * setback
            floor_height = rng.uniform(2.7, 3.6)
            buildings.append(
                Building(side.sign, face, z, z + long, rng.uniform(6, 12), tall, floor_height, roof, seed)
            )
            z += long + (0.0 if kind == "town" and rng.random() < 0.85 else rng.uniform(1, 6))
    return buildings, green


def across(end: float, left: float, right: float, rng: Random) -> list[Building]:
    """Buildings that close the view at the end of the street."""
    found = []
    x = left - rng.uniform(5, 40)
    while x < right + 25:
        wide = rng.uniform(8, 25)
        floors = rng.choice((2, 2, 3, 4))
        roof = rng.choice((0.0, rng.uniform(1, 4)))
        if rng.random() < 0.92:
            seed = rng.getrandbits(32)
            z = end + rng.uniform(0, 12)
            found.append(Building(0, z, x, x + wide, 10.0, floors, rng.uniform(2.7, 3.4), roof, seed))
        x += wide
    return found


def paint_building(painter: Painter, building: Building, light: Light) -> None:
    """Paint one building."""
    if building.side and not painter.sees(_hull(building)):
        return
    rng = Random(building.seed)
    style = pick(rng, brick=0.45, render=0.28, stone=0.15, dark=0.12)
    wall = vary(rng, rng.choice(WALLS[style]), 0.35)
    slate = vary(rng, rng.choice(((78, 76, 78), (100, 72, 60), (64, 62, 62))), 0.15)
    near = max(building.start, 2.0) if building.side else building.face
    painter.begin(BUILDING, near, texture=rng.uniform(0.08, 0.26))
    if building.side == 0:
        _front(painter, building, wall, light.on(0, 0, -1), rng)
        _end_roof(painter, building, slate, light)
        return
    _gable(painter, building, wall, light.on(0, 0, -1) * 0.92, rng)
    if building.roof > 0:
        _roof(painter, building, slate, light)
    _front(painter, building, wall, light.on(-building.side, 0, 0), rng)


def _hull(building: Building) -> Floats:
    """The corners of its street front and of its back, (8, 3)."""
    top = building.height + building.roof
    back = building.face + building.side * building.depth
    return np.array(
        [
            (x, y, z)
            for x in (building.face, back)
            for y in (0.0, top)
            for z in (building.start, building.stop)
        ]
    )


def _on_front(building: Building, flat: Floats) -> Floats:
    """Front coordinates (..., 2), along the street and up, as world points (..., 3)."""
    out = np.empty((*flat.shape[:-1], 3))
    along = building.start + flat[..., 0]
    out[..., 0] = along if building.side == 0 else building.face
    out[..., 1] = flat[..., 1]
    out[..., 2] = building.face if building.side == 0 else along
    return out


def _front(painter: Painter, building: Building, wall: Colour, shade: float, rng: Random) -> None:
    long, high = building.stop - building.start, building.height
    painter.faces(_on_front(building, np.array([rectangle(0, 0, long, high)])), [tint(wall, shade)])
    boxes: list[list[tuple[float, float]]] = []
    colours: list[Colour] = []
    shop = building.side != 0 and building.floors > 1 and rng.random() < 0.55
    _panels(boxes, colours, building, wall, shade, rng)
    _windows(boxes, colours, building, wall, 1 if shop else 0, shade, rng)
    if shop:
        _shop(boxes, colours, long, building.floor_height, shade, rng)
    if rng.random() < 0.6:
        cornice = rng.uniform(0.15, 0.4)
        boxes.append(rectangle(0, high - cornice, long, high))
        colours.append(tint(wall, shade * rng.uniform(0.7, 1.3)))
    boxes.append(rectangle(0, 0, 0.12, high))
    colours.append(tint(wall, shade * 0.7))
    painter.faces(_on_front(building, np.array(boxes)), colours, solid=False)


def _panels(
    boxes: list[list[tuple[float, float]]],
    colours: list[Colour],
    building: Building,
    wall: Colour,
    shade: float,
    rng: Random,
) -> None:
    """Stretches of another material, drainpipes and archways."""
    long, high = building.stop - building.start, building.height
    for _ in range(rng.randint(0, 3)):
        u = rng.uniform(0, long * 0.8)
        kind = pick(rng, pipe=0.5, arch=0.2, strip=0.3)
        if kind == "pipe":
            boxes.append(rectangle(u, 0, u + 0.13, high))
            colours.append(tint(wall, shade * rng.uniform(0.3, 0.6)))
        elif kind == "arch":
            boxes.append(rectangle(u, 0, min(u + rng.uniform(1.2, 3), long), rng.uniform(2.2, 3.2)))
            colours.append(tint(wall, shade * rng.uniform(0.08, 0.3)))
        else:
            boxes.append(rectangle(u, 0, min(u + rng.uniform(0.6, 2.5), long), high))
            colours.append(tint(vary(rng, rng.choice(WALLS[rng.choice(tuple(WALLS))]), 0.2), shade))


def _windows(
    boxes: list[list[tuple[float, float]]],
    colours: list[Colour],
    building: Building,
    wall: Colour,
    first: int,
    shade: float,
    rng: Random,
) -> None:
    long, floor = building.stop - building.start, building.floor_height
    pitch = rng.uniform(1.7, 3.4)
    wide = pitch * rng.uniform(0.35, 0.8)
    tall = floor * rng.uniform(0.4, 0.65)
    sill = floor * rng.uniform(0.2, 0.3)
    frame = tint(rng.choice(((215, 215, 210), (235, 235, 232), (90, 82, 76), wall)), shade)
    bar = rng.random() < 0.6
    glass = rng.uniform(12, 60)
    columns = max(1, int(long / pitch))
    margin = (long - columns * pitch) / 2
    detailed = building.side != 0 and building.start < 45
    for level in range(first, building.floors):
        bottom = level * floor + sill
        for column in range(columns):
            u = margin + (column + 0.5) * pitch - wide / 2
            pane = glass * rng.uniform(0.5, 1.6) * (rng.uniform(1.8, 4.5) if rng.random() < 0.2 else 1.0)
            if level == 0 and rng.random() < 0.2:
                boxes.append(rectangle(u, 0, u + 1.0, 2.1))
                colours.append(tint(vary(rng, rng.choice(SHOPS), 0.3), shade * 0.7))
                continue
            if detailed:
                boxes.append(rectangle(u - 0.1, bottom - 0.12, u + wide + 0.1, bottom + tall + 0.08))
                colours.append(frame)
            boxes.append(rectangle(u, bottom, u + wide, bottom + tall))
            colours.append((pane * 0.93, pane, pane * 1.06))
            if detailed and bar:
                boxes.append(rectangle(u, bottom + tall * 0.48, u + wide, bottom + tall * 0.54))
                colours.append(frame)
                boxes.append(rectangle(u + wide * 0.47, bottom, u + wide * 0.53, bottom + tall))
                colours.append(frame)


def _shop(
    boxes: list[list[tuple[float, float]]],
    colours: list[Colour],
    long: float,
    floor: float,
    shade: float,
    rng: Random,
) -> None:
    board = tint(vary(rng, rng.choice(SHOPS), 0.3), shade)
    glass = rng.uniform(25, 90)
    boxes.append(rectangle(0.2, 0.3, long - 0.2, floor * 0.78))
    colours.append((glass, glass, glass * 1.02))
    for _ in range(rng.randint(3, 9)):
        u, v = rng.uniform(0.3, max(0.4, long - 1.2)), rng.uniform(0.4, floor * 0.6)
        glow = glass * rng.uniform(0.4, 2.2)
        boxes.append(rectangle(u, v, min(u + rng.uniform(0.3, 1.5), long - 0.2), v + rng.uniform(0.2, 0.8)))
        colours.append((glow * rng.uniform(0.9, 1.2), glow, glow * rng.uniform(0.8, 1.1)))
    u = 0.2
    while u < long:
        boxes.append(rectangle(u, 0, u + 0.14, floor * 0.8))
        colours.append(tint(board, 0.8))
        u += rng.uniform(1.2, 3)
    boxes.append(rectangle(0.1, floor * 0.78, long - 0.1, floor * 0.97))
    colours.append(board)
    letters = tint((225, 220, 205), shade) if sum(board) < 420 else tint((50, 46, 44), shade)
    u = long * rng.uniform(0.1, 0.4)
    while u < long * 0.8:
        boxes.append(rectangle(u, floor * 0.83, u + 0.18, floor * 0.92))
        colours.append(letters)
        u += rng.uniform(0.25, 0.45)
    if rng.random() < 0.2:
        boxes.append(rectangle(0.2, floor * 0.6, long - 0.2, floor * 0.8))
        colours.append(tint(vary(rng, rng.choice(SHOPS), 0.3), shade * 1.2))


def _gable(painter: Painter, building: Building, wall: Colour, shade: float, rng: Random) -> None:
    """The side wall that faces the camera, with the end of the roof above it."""
    near, inside = building.face, building.face + building.side * building.depth
    middle, high, z = (near + inside) / 2, building.height, building.start
    outline = [
        (near, 0, z),
        (near, high, z),
        (middle, high + building.roof, z),
        (inside, high, z),
        (inside, 0, z),
    ]
    painter.faces(np.array([outline], dtype=float), [tint(wall, shade)])
    if rng.random() < 0.4:
        return
    boxes = []
    for level in range(building.floors):
        for share in (0.3, 0.7):
            x = near + (inside - near) * share
            y = level * building.floor_height + 0.9
            boxes.append([(x - 0.5, y, z), (x - 0.5, y + 1.3, z), (x + 0.5, y + 1.3, z), (x + 0.5, y, z)])
    glass = rng.uniform(25, 80)
    painter.faces(np.array(boxes), [(glass, glass, glass * 1.05)] * len(boxes), solid=False)


def _roof(painter: Painter, building: Building, slate: Colour, light: Light) -> None:
    high, ridge = building.height, building.height + building.roof
    middle = building.face + building.side * building.depth / 2
    eaves = building.face - building.side * 0.25
    slope = math.hypot(building.roof, building.depth / 2)
    shade = light.on(-building.side * building.roof / slope, building.depth / 2 / slope, 0)
    plane = [(eaves, high, building.start), (middle, ridge, building.start)]
    plane += [(middle, ridge, building.stop), (eaves, high, building.stop)]
    quads, colours = [plane], [tint(slate, shade)]
    rng = Random(building.seed + 1)
    for _ in range(rng.randint(0, 2)):
        z = rng.uniform(building.start, building.stop - 0.8)
        x = middle - building.side * 0.4
        stack = [
            (x, ridge - 0.6, z),
            (x, ridge + 1.2, z),
            (x, ridge + 1.2, z + 0.9),
            (x, ridge - 0.6, z + 0.9),
        ]
        head = [(x, ridge - 0.6, z), (x, ridge + 1.2, z)]
        head += [(x + building.side * 0.7, ridge + 1.2, z), (x + building.side * 0.7, ridge - 0.6, z)]
        quads += [stack, head]
        colours += [tint((120, 86, 70), shade), tint((120, 86, 70), shade * 0.8)]
    painter.faces(np.array(quads), colours)


def _end_roof(painter: Painter, building: Building, slate: Colour, light: Light) -> None:
    if building.roof == 0:
        return
    high, z = building.height, building.face
    plane = [(building.start, high, z), (building.start + 1, high + building.roof, z + 4)]
    plane += [(building.stop - 1, high + building.roof, z + 4), (building.stop, high, z)]
    painter.faces(np.array([plane]), [tint(slate, light.on(0, 0.8, -0.6))])
