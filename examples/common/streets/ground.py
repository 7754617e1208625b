"""Sky and ground: what lies behind every object, as two full-canvas arrays."""

import math
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .classes import PAVEMENT, ROAD, SKY, TREE
from .noise import fractal, lookup, tile
from .painter import OVERSAMPLING, Colour, Painter
from .scene import Light, Street, vary

Plane = NDArray[np.float32]
ROAD_LAYER, PAVEMENT_LAYER, GRASS_LAYER, KERB_LAYER, GAP_LAYER = range(5)
FAR = 2000.0  # metres: the ground beyond is sky
SURFACE_CLASSES = {ROAD_LAYER: ROAD, PAVEMENT_LAYER: PAVEMENT, GRASS_LAYER: TREE, KERB_LAYER: PAVEMENT}


def paint_ground(painter: Painter, street: Street, light: Light, rng: Random) -> int:
    """Fill the canvas with sky above the horizon and the ground plan below it; returns the road's object number."""
    camera = painter.camera
    height, width = camera.size
    sky = painter.begin(SKY, 0.0, texture=0.0)
    numbers = np.zeros(5, np.int32)
    for layer, class_index in SURFACE_CLASSES.items():
        numbers[layer] = painter.begin(class_index, 0.0, texture=0.05)
    rows, columns = height // OVERSAMPLING, width // OVERSAMPLING
    ids = np.full((rows, columns), sky, np.int32)
    picture = _sky(rows, columns, light, rng)
    slope = abs(math.tan(camera.roll)) * width / 2
    top = min(rows - 1, max(0, math.floor((camera.horizon() - slope) / OVERSAMPLING) - 1))
    x, z = camera.ground(top * OVERSAMPLING, OVERSAMPLING)
    seen = z < FAR
    layers = _layers(x, z, street)
    bright, veil = _grain(x, z, layers, light, painter.visibility, rng)
    colour = _palette(rng)[layers] * (bright * (1 - veil))[..., None]
    colour += veil[..., None] * np.array(painter.haze, np.float32)
    np.clip(colour, 0, 255, out=colour)
    picture[top:] = np.where(seen[..., None], colour.astype(np.uint8), picture[top:])
    ids[top:] = np.where(seen, numbers[layers], sky)
    painter.load(picture, ids)
    return int(numbers[ROAD_LAYER])


def _sky(height: int, width: int, light: Light, rng: Random) -> NDArray[np.uint8]:
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
    coarse = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    return np.array(coarse.resize((width, height), Image.Resampling.BILINEAR))


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


def _palette(rng: Random) -> Plane:
    """Colours of the layers, (5, 3)."""
    grey = rng.uniform(62, 108)
    slab = rng.uniform(0.6, 1.2) * grey
    kerb = rng.uniform(0.8, 1.3) * slab
    colours: list[Colour] = [
        vary(rng, (grey * 0.97, grey, grey * 1.05), 0.06),
        vary(rng, (slab * 1.03, slab, slab * 0.96), 0.08),
        vary(rng, (84, 98, 58), 0.25),
        (kerb, kerb, kerb * 0.97),
        (60, 58, 54),
    ]
    return np.array(colours, np.float32)


def _grain(
    x: Plane, z: Plane, layers: NDArray[np.int8], light: Light, visibility: float, rng: Random
) -> tuple[Plane, Plane]:
    """Brightness of the ground and the share of haze before it, both like x."""
    far = np.minimum(z, np.float32(FAR))
    fine = lookup(tile(128), x * 37 + 4096, far * 37) * (np.minimum(12 / z, 1) * rng.uniform(0.02, 0.07))
    patches = lookup(fractal(), x * 7 + (4096 + rng.uniform(0, 256)), far * 2.2) * rng.uniform(0.02, 0.07)
    tracks = lookup(tile(32), x * 16 + (4096 + rng.uniform(0, 256)), far * 0.35) * rng.uniform(0.0, 0.05)
    grain = 1 + fine + patches + tracks
    grain += np.where(layers == GRASS_LAYER, fine * 2 + patches, 0)
    joint = rng.uniform(0.5, 0.95)
    seams = ((x % joint < 0.05) | (z % joint < 0.06)) & (layers == PAVEMENT_LAYER) & (z < 14)
    grain -= np.where(seams, rng.uniform(0.05, 0.2), 0)
    grain *= light.on(0, 1, 0) * light.exposure
    return grain.astype(np.float32), (1 - np.exp(-far / visibility)).astype(np.float32)


def paint_markings(painter: Painter, road: int, street: Street, rng: Random) -> None:
    """Lane lines, kerb lines, zebra crossings, hatching and arrows, as details of the road."""
    painter.resume(road)
    worn = rng.uniform(0.75, 1.6)
    white: Colour = (150 * worn, 150 * worn, 148 * worn)
    yellow: Colour = (150 * worn, 130 * worn, 62 * worn)
    centre = (street.left.kerb + street.right.kerb) / 2 + rng.uniform(-0.5, 0.8)
    strips = _Strips()
    _patches(strips, street, rng)
    _lane_lines(strips, street, centre, white, yellow, rng)
    _crossings(strips, street, centre, white, yellow, rng)
    if strips.corners:
        painter.faces(np.array(strips.corners), strips.colours, solid=False)


class _Strips:
    """Flat quadrilaterals on the road."""

    def __init__(self) -> None:
        self.corners: list[list[tuple[float, float, float]]] = []
        self.colours: list[Colour] = []

    def add(self, x: tuple[float, float], z: tuple[float, float], colour: Colour, slant: float = 0.0) -> None:
        """One strip between two x and two z; its far end is moved sideways by `slant`."""
        if z[1] > 0.5:
            near = max(z[0], 0.3)
            far = [(x[0] + slant, 0.0, z[1]), (x[1] + slant, 0.0, z[1])]
            self.corners.append([(x[0], 0.0, near), *far, (x[1], 0.0, near)])
            self.colours.append(colour)


def _patches(strips: _Strips, street: Street, rng: Random) -> None:
    """Repairs and stains."""
    for _ in range(rng.randint(0, 4)):
        x, z = rng.uniform(street.left.kerb, street.right.kerb), rng.uniform(4, 30)
        shade = rng.uniform(40, 85)
        strips.add((x, x + rng.uniform(0.5, 1.8)), (z, z + rng.uniform(0.5, 4)), (shade, shade, shade * 1.04))


def _lane_lines(
    strips: _Strips, street: Street, centre: float, white: Colour, yellow: Colour, rng: Random
) -> None:
    if rng.random() < 0.8:
        dash, gap = rng.choice(((2, 4), (4, 2), (1.5, 1.5), (9, 0.0)))
        z = rng.uniform(0, 5)
        while z < 70:
            strips.add((centre - 0.06, centre + 0.06), (z, z + dash), white)
            z += dash + gap
    for side in street.sides:
        style = rng.choice(("double", "single", "none", "none"))
        colour = yellow if rng.random() < 0.8 else white
        for offset in {"double": (0.25, 0.45), "single": (0.3,), "none": ()}[style]:
            at = side.kerb - side.sign * offset
            for start in range(0, 60, 5):
                if not side.open_at(start + 2.5, 3):
                    strips.add((at - 0.045, at + 0.045), (start, start + 5), colour)


def _crossings(
    strips: _Strips, street: Street, centre: float, white: Colour, yellow: Colour, rng: Random
) -> None:
    left, right = street.left.kerb, street.right.kerb
    if rng.random() < 0.2:
        z, x = rng.uniform(3.5, 25), left + 0.3
        while x < right - 0.5:
            strips.add((x, x + 0.5), (z, z + 2.4), white)
            x += 1.0
    if rng.random() < 0.3:
        z = rng.uniform(4, 30)
        strips.add((left + 0.2, centre), (z, z + 0.3), white)
    if rng.random() < 0.15:
        for start in range(3, 30, 2):
            strips.add((centre + 0.3, centre + 0.45), (start, start + 2), white, slant=1.0)
    if rng.random() < 0.2:
        x, z = (left + centre) / 2, rng.uniform(5, 16)
        strips.add((x - 0.08, x + 0.08), (z, z + 2.5), white)
        for step in range(4):
            half = 0.45 * (1 - step / 4)
            strips.add((x - half, x + half), (z + 2.5 + 0.4 * step, z + 2.9 + 0.4 * step), white)
    if rng.random() < 0.12:
        for k in range(rng.randint(3, 7)):
            at = left + k * 1.6
            strips.add((at, at + 0.12), (9, 18), yellow, slant=2.5)
            strips.add((at + 2.5, at + 2.62), (9, 18), yellow, slant=-2.5)
