"""Trees, hedges and bushes. CamVid's trees are mostly bare: branches against the sky, labelled as one crown."""

from dataclasses import dataclass
from random import Random

import numpy as np

from .classes import TREE
from .crowns import KINDS, bare, leafy
from .painter import Colour, Painter, tint
from .scene import Light, vary

LEAVES: tuple[Colour, ...] = ((62, 74, 42), (80, 86, 50), (48, 60, 44), (96, 92, 58), (70, 66, 48))
BARK: tuple[Colour, ...] = ((58, 50, 44), (74, 66, 58), (48, 44, 42))


@dataclass(frozen=True)
class Tree:
    """A tree or bush at (x, z).

    Attributes:
        height: metres to its top.
        spread: half width of the crown.
        bush: whether it is leafy down to the ground.
        bare: whether it has lost its leaves.
        seed: of its details.
    """

    x: float
    z: float
    height: float
    spread: float
    bush: bool
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
    height = rng.uniform(5, 14)
    bush = rng.random() < 0.25
    if bush:
        height = rng.uniform(1.2, 3.5)
    spread = height * (rng.uniform(0.5, 1.1) if bush else rng.uniform(0.36, 0.62))
    return Tree(x, z, height, spread, bush, not bush and rng.random() < 0.6, rng.getrandbits(32))


def paint_tree(painter: Painter, tree: Tree, light: Light) -> None:
    """Paint one tree."""
    if tree.z < 3:
        return
    rng = Random(tree.seed)
    painter.begin(TREE, tree.z, texture=0.08)
    kind = rng.randrange(KINDS // 2)
    if tree.bare:
        colour = tint(vary(rng, rng.choice(BARK), 0.25), light.on(0, 0, -1))
        stamp = bare(kind + rng.choice((0, KINDS // 2)), rng.random() < 0.5)
    else:
        colour = tint(vary(rng, rng.choice(LEAVES), 0.3), light.on(0, 0.3, -0.9))
        stamp = leafy(kind if tree.bush else kind + KINDS // 2, light.sun[0] > 0)
    painter.stamp(tree.x, tree.z, tree.spread, tree.height, stamp, colour)


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
