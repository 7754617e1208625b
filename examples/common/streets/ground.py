"""Sky and ground: what lies behind every object, as two full-canvas arrays."""

import math
from collections.abc import Callable
from random import Random

import numpy as np
from numpy.typing import NDArray

from .camera import Floats
from .classes import PAVEMENT, ROAD, SKY, TREE
from .noise import fractal, lookup, resize, tile
from .painter import Colour, Painter
from .scene import Light, Street, vary

Plane = NDArray[np.float32]
Strip = Callable[[float, float, float, float, Colour], None]
ROAD_LAYER, PAVEMENT_LAYER, GRASS_LAYER, KERB_LAYER, GAP_LAYER = range(5)
SURFACE_CLASSES = {ROAD_LAYER: ROAD, PAVEMENT_LAYER: PAVEMENT, GRASS_LAYER: TREE, KERB_LAYER: PAVEMENT}


def paint_ground(painter: Painter, street: Street, light: Light, rng: Random) -> int:
    """Fill the canvas with sky above the horizon and the ground plan below it; returns the road's object number."""
    height, width = painter.camera.size
    ids = np.zeros((height, width), np.int32)
    ids[:] = painter.begin(SKY, 0.0, texture=0.0)
    numbers = np.zeros(5, np.int32)
    for layer, class_index in SURFACE_CLASSES.items():
        numbers[layer] = painter.begin(class_index, 0.0, texture=0.03)
    canvas = _sky(height, width, light, rng)
    slope = abs(math.tan(painter.camera.roll)) * width / 2
    top = min(height - 1, max(0, math.floor(painter.camera.horizon() - slope - 1)))
    x, z = painter.camera.ground(top)
    seen = np.isfinite(z)
    layer_map = _layers(x, np.where(seen, z, 1e6), street)
    colour = _surface(x, np.where(seen, z, 1e3), layer_map, street, light, rng)
    fog = np.float32(1) - np.exp(-np.where(seen, z, 1e6) / np.float32(painter.visibility))
    colour += (np.array(painter.haze, np.float32) - colour) * fog[..., None]
    canvas[top:] = np.where(seen[..., None], colour, canvas[top:])
    ids[top:] = np.where(seen, numbers[layer_map], ids[top:])
    painter.load(np.clip(canvas, 0, 255).astype(np.uint8), ids)
    return int(numbers[ROAD_LAYER])


def _sky(height: int, width: int, light: Light, rng: Random) -> Plane:
    """A vertical gradient with clouds, computed coarsely: nothing in it is sharp."""
    rows, columns = 60, 80
    down = np.linspace(0, 1.9, rows, dtype=np.float32).clip(0, 1)[:, None] ** rng.uniform(0.6, 1.6)
    zenith, horizon = (np.array(c, np.float32) for c in (light.zenith, light.horizon))
    sky = zenith + (horizon - zenith) * down[..., None] * np.ones((1, columns, 1), np.float32)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    depth = 1 / (1.15 - np.minimum(y / rows * 1.9, 1))
    shift = rng.uniform(0, 256)
    clouds = lookup(fractal(), (x - columns / 2) * depth * 0.5 + 128 + shift, depth * 30 + shift)
    strength = {"clear": 14, "overcast": 7, "dusk": 26, "rain": 8}[light.kind] * rng.uniform(0.2, 1.2)
    sky += (clouds * strength)[..., None]
    return np.stack([resize(sky[..., c], (height, width)) for c in range(3)], axis=-1)


def _layers(x: Plane, z: Plane, street: Street) -> NDArray[np.int8]:
    layers = np.full(x.shape, ROAD_LAYER, np.int8)
    for side in street.sides:
        away = x * np.float32(side.sign)
        kerb, pavement = side.kerb * side.sign, side.pavement * side.sign
        verge = {"grass": GRASS_LAYER, "pavement": PAVEMENT_LAYER, "asphalt": ROAD_LAYER}[side.verge]
        closed = z < street.end
        for z0, z1 in side.openings:
            closed &= (z < z0) | (z > z1)
        layers[closed & (away > kerb)] = KERB_LAYER
        layers[closed & (away > kerb + 0.16)] = PAVEMENT_LAYER
        layers[closed & (away > pavement)] = verge
        if verge == GRASS_LAYER:
            layers[closed & (away > pavement - 0.08) & (away <= pavement + 0.1)] = GAP_LAYER
    return layers


def _surface(
    x: Plane, z: Plane, layers: NDArray[np.int8], street: Street, light: Light, rng: Random
) -> Plane:
    """Lit colours of the ground, in [0, 255], (rows, W, 3)."""
    grey = rng.uniform(62, 108)
    road = vary(rng, (grey * 0.97, grey, grey * 1.05), 0.06)
    slab = rng.uniform(0.7, 1.35) * grey
    palette: list[Colour] = [
        road,
        vary(rng, (slab * 1.03, slab, slab * 0.96), 0.08),
        vary(rng, (84, 98, 58), 0.25),
        vary(rng, (slab * 1.15, slab * 1.15, slab * 1.12), 0.1),
        (60, 58, 54),
    ]
    base = np.array(palette, np.float32)[layers]
    near = np.clip(12 / z, 0, 1)
    fine = lookup(tile(128), x * 37 + 4096, z * 37) * (near * rng.uniform(0.02, 0.07))
    patches = lookup(fractal(), x * 7 + 4096 + rng.uniform(0, 256), z * 2.2) * np.float32(
        rng.uniform(0.02, 0.07)
    )
    tracks = lookup(tile(32), x * 16 + 4096 + rng.uniform(0, 256), z * 0.35) * np.float32(
        rng.uniform(0.0, 0.05)
    )
    grain = 1 + fine + patches + tracks
    grass = layers == GRASS_LAYER
    grain += np.where(grass, fine * 2 + patches, 0)
    joint = rng.uniform(0.5, 0.95)
    seams = ((x % joint < 0.05) | (z % joint < 0.06)) & (layers == PAVEMENT_LAYER) & (z < 14)
    grain -= np.where(seams, np.float32(rng.uniform(0.05, 0.2)), 0)
    grain *= np.float32(light.on(0, 1, 0) * light.exposure)
    return np.asarray(base * grain[..., None], dtype=np.float32)


def paint_markings(painter: Painter, road: int, street: Street, rng: Random) -> None:
    """Lane lines, kerb lines, zebra crossings, hatching and arrows, as details of the road."""
    painter.resume(road)
    worn = rng.uniform(0.75, 1.6)
    white = (150 * worn, 150 * worn, 148 * worn)
    yellow = (150 * worn, 130 * worn, 62 * worn)
    strips: list[Floats] = []
    colours: list[Colour] = []

    def strip(x0: float, x1: float, z0: float, z1: float, colour: Colour, slant: float = 0.0) -> None:
        if z1 > 0.5:
            strips.append(_flat(x0, x1, max(z0, 0.3), z1, slant))
            colours.append(colour)

    centre = (street.left.kerb + street.right.kerb) / 2 + rng.uniform(-0.5, 0.8)
    if rng.random() < 0.8:
        dash, gap = rng.choice(((2, 4), (4, 2), (1.5, 1.5), (9, 0.0)))
        z = rng.uniform(0, 5)
        while z < 70:
            strip(centre - 0.06, centre + 0.06, z, z + dash, white)
            z += dash + gap
    for side in street.sides:
        style = pick_line(rng)
        for offset in {"double": (0.25, 0.45), "single": (0.3,), "none": ()}[style]:
            at = side.kerb - side.sign * offset
            for z in range(0, 60, 5):
                if not side.open_at(z + 2.5, 3):
                    strip(at - 0.045, at + 0.045, z, z + 5, yellow if rng.random() < 0.9 else white)
    if rng.random() < 0.2:
        _zebra(strip, street, rng, white)
    if rng.random() < 0.3:
        z = rng.uniform(4, 30)
        strip(street.left.kerb + 0.2, centre, z, z + 0.3, white)
    if rng.random() < 0.15:
        for z in range(3, 30, 2):
            strip(centre + 0.3, centre + 0.45, z, z + 2, white, slant=1.0)
    if rng.random() < 0.2:
        _arrow(strip, (street.left.kerb + centre) / 2, rng.uniform(5, 16), white)
    if rng.random() < 0.12:
        for k in range(rng.randint(3, 7)):
            at = street.left.kerb + k * 1.6
            strip(at, at + 0.12, 9, 18, yellow, slant=2.5)
            strip(at + 2.5, at + 2.62, 9, 18, yellow, slant=-2.5)
    for _ in range(rng.randint(0, 4)):
        x, z = rng.uniform(street.left.kerb, street.right.kerb), rng.uniform(4, 30)
        shade = rng.uniform(40, 75)
        strip(x, x + rng.uniform(0.5, 1.8), z, z + rng.uniform(0.5, 4), (shade, shade, shade * 1.04))
    if strips:
        painter.faces(np.array(strips), colours, solid=False)


def pick_line(rng: Random) -> str:
    """How a kerb is marked."""
    return rng.choice(("double", "single", "none", "none"))


def _flat(x0: float, x1: float, z0: float, z1: float, slant: float) -> Floats:
    return np.array([(x0, 0.0, z0), (x0 + slant, 0.0, z1), (x1 + slant, 0.0, z1), (x1, 0.0, z0)])


def _zebra(strip: Strip, street: Street, rng: Random, white: Colour) -> None:
    z, x = rng.uniform(3.5, 25), street.left.kerb + 0.3
    while x < street.right.kerb - 0.5:
        strip(x, x + 0.5, z, z + 2.4, white)
        x += 1.0


def _arrow(strip: Strip, x: float, z: float, white: Colour) -> None:
    strip(x - 0.08, x + 0.08, z, z + 2.5, white)
    for step in range(4):
        half = 0.45 * (1 - step / 4)
        strip(x - half, x + half, z + 2.5 + 0.4 * step, z + 2.9 + 0.4 * step, white)
