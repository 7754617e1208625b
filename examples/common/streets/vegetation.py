"""Trees, hedges and bushes. CamVid's trees are mostly bare: branches against the sky, labelled as one crown."""

import math
from dataclasses import dataclass
from random import Random

import numpy as np

from .camera import Floats
from .classes import TREE
from .painter import Colour, Painter, tint, upright
from .scene import Light, vary

LEAVES: tuple[Colour, ...] = ((62, 74, 42), (80, 86, 50), (48, 60, 44), (96, 92, 58), (70, 66, 48))
BARK: tuple[Colour, ...] = ((58, 50, 44), (74, 66, 58), (48, 44, 42))


@dataclass(frozen=True)
class Tree:
    """A tree or bush at (x, z).

    Attributes:
        height: metres to its top.
        spread: half width of the crown.
        stem: metres of bare trunk below the crown; 0 for a bush.
        bare: whether it has lost its leaves.
        seed: of its details.
    """

    x: float
    z: float
    height: float
    spread: float
    stem: float
    bare: bool
    seed: int


@dataclass(frozen=True)
class Hedge:
    """A hedge along the street, its street side at x, from start to stop."""

    x: float
    start: float
    stop: float
    height: float
    side: int
    seed: int


def sample_tree(x: float, z: float, rng: Random) -> Tree:
    """A tree of a random kind."""
    height = rng.uniform(4, 11)
    bush = rng.random() < 0.25
    if bush:
        height = rng.uniform(1.2, 3.5)
    spread = height * rng.uniform(0.28, 0.48)
    stem = 0.0 if bush else height * rng.uniform(0.15, 0.35)
    return Tree(x, z, height, spread, stem, not bush and rng.random() < 0.55, rng.getrandbits(32))


def paint_tree(painter: Painter, tree: Tree, light: Light) -> None:
    """Paint one tree."""
    scale = painter.scale(tree.x, tree.z)
    if scale == 0 or tree.z < 3:
        return
    rng = Random(tree.seed)
    painter.begin(TREE, tree.z, texture=0.1 if tree.bare else 0.22)
    bark = tint(vary(rng, rng.choice(BARK), 0.2), light.on(0, 0, -1))
    trunk = max(0.08, tree.height * rng.uniform(0.018, 0.03))
    if tree.stem > 0:
        stem = [(-trunk, 0), (-trunk * 0.7, tree.stem * 1.6), (trunk * 0.7, tree.stem * 1.6), (trunk, 0)]
        painter.faces(upright(tree.x, tree.z, np.array([stem])), [bark])
    if tree.bare:
        painter.claim(upright(tree.x, tree.z, _outline(tree, rng)[None]))
        _branches(painter, tree, bark, trunk, rng)
    else:
        _leaves(painter, tree, light, rng, scale)


def _outline(tree: Tree, rng: Random) -> Floats:
    """A ragged crown, (28, 2)."""
    middle, half = (tree.stem + tree.height) / 2, (tree.height - tree.stem) / 2
    angle = np.arange(28) * (2 * math.pi / 28)
    ragged = np.array([rng.uniform(0.78, 1.04) for _ in range(28)])
    return np.stack([tree.spread * ragged * np.cos(angle), middle + half * ragged * np.sin(angle)], axis=-1)


def _branches(painter: Painter, tree: Tree, bark: Colour, trunk: float, rng: Random) -> None:
    """Boughs that fork three or four times, thinner each time."""
    segments: list[tuple[tuple[float, float], tuple[float, float]]] = []
    widths: list[float] = []
    colours: list[Colour] = []
    tips = [(0.0, tree.stem, math.pi / 2, trunk * 1.4, tree.height * 0.3)]
    for level in range(6):
        grown = []
        for x, y, angle, width, length in tips:
            for _ in range(3 if level < 3 else 2):
                turned = angle + rng.gauss(0, 0.5 + 0.06 * level)
                reach = length * rng.uniform(0.7, 1.2)
                end = (x + reach * math.cos(turned) * 0.9, y + reach * math.sin(turned))
                inside = (end[0] / tree.spread) ** 2 + (
                    2 * (end[1] - tree.stem) / (tree.height - tree.stem) - 1
                ) ** 2
                if inside > 1.0 or end[1] < tree.stem:
                    continue
                segments.append(((x, y), end))
                widths.append(width)
                colours.append(bark)
                grown.append((end[0], end[1], turned, width * 0.55, length * 0.68))
        rng.shuffle(grown)
        tips = grown[:60]
    if segments:
        painter.lines(upright(tree.x, tree.z, np.array(segments)), widths, colours)


def _leaves(painter: Painter, tree: Tree, light: Light, rng: Random, scale: float) -> None:
    """Clumps of leaves: dark ones first, lit ones above and towards the sun."""
    leaf = vary(rng, rng.choice(LEAVES), 0.25)
    middle, half = (tree.stem + tree.height) / 2, (tree.height - tree.stem) / 2
    body = np.array([[(0.8 * x, y) for x, y in _outline(tree, rng).tolist()]])
    painter.faces(upright(tree.x, tree.z, body), [tint(leaf, 0.6)])
    count = min(150, int(20 + scale * tree.spread * 0.9))
    size = tree.spread * min(0.3, 2.4 / math.sqrt(count))
    points, radii, colours = [], [], []
    for index in range(count):
        angle, reach = rng.uniform(0, 2 * math.pi), math.sqrt(rng.random())
        x, y = reach * math.cos(angle), reach * math.sin(angle)
        points.append((tree.x + tree.spread * x, max(0.05, middle + half * y), tree.z))
        radii.append(size * rng.uniform(0.5, 1.1))
        lit = 0.75 + 0.3 * y + light.direct * 0.5 * (x * light.sun[0] + y) + 0.35 * (index / count - 0.5)
        colours.append(tint(leaf, max(0.3, lit * rng.uniform(0.7, 1.3))))
    painter.spots(np.array(points), radii, colours)


def paint_hedge(painter: Painter, hedge: Hedge, light: Light) -> None:
    """Paint a hedge: its near end, its street side and its top, all ragged."""
    rng = Random(hedge.seed)
    leaf = vary(rng, rng.choice(LEAVES), 0.25)
    painter.begin(TREE, max(2.0, hedge.start), texture=0.25)
    steps = 9
    z = np.linspace(max(hedge.start, 0.8), hedge.stop, steps)
    tops = [hedge.height * rng.uniform(0.9, 1.1) for _ in range(steps)]
    shade = light.on(-hedge.side, 0, 0)
    inner = hedge.x + hedge.side * 1.2
    end = [(hedge.x, 0, z[0]), (hedge.x, tops[0], z[0]), (inner, tops[0], z[0]), (inner, 0, z[0])]
    quads, colours = [end], [tint(leaf, light.on(0, 0, -1) * 0.8)]
    for k in range(steps - 1):
        top = [(hedge.x, tops[k], z[k]), (inner, tops[k], z[k]), (inner, tops[k + 1], z[k + 1])]
        quads.append([*top, (hedge.x, tops[k + 1], z[k + 1])])
        colours.append(tint(leaf, 1.15))
        side = [(hedge.x, 0, z[k]), (hedge.x, tops[k], z[k]), (hedge.x, tops[k + 1], z[k + 1])]
        quads.append([*side, (hedge.x, 0, z[k + 1])])
        colours.append(tint(leaf, shade * rng.uniform(0.75, 1.0)))
    painter.faces(np.array(quads, dtype=float), colours)
