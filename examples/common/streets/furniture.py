"""Lamp posts, signs, traffic lights, bollards, fences, and things that CamVid leaves unlabelled."""

from dataclasses import dataclass
from random import Random

import numpy as np

from .classes import FENCE, IGNORE_INDEX, POLE, SIGN
from .painter import Colour, Painter, ellipse, rectangle, tint, upright
from .scene import Light, vary

RED: Colour = (170, 30, 30)
WOOD: Colour = (112, 88, 66)
MASONRY: tuple[Colour, ...] = ((128, 92, 76), (140, 132, 116), (104, 98, 92))


@dataclass(frozen=True)
class Post:
    """A thing on a post at (x, z): "lamp", "sign", "signal", "bollard", "board", "bin" or "shelter"."""

    x: float
    z: float
    kind: str
    side: int
    seed: int


@dataclass(frozen=True)
class Fence:
    """A fence along the street at x, from start to stop: "railing", "boards" or "wall"."""

    x: float
    start: float
    stop: float
    kind: str
    seed: int


def paint_post(painter: Painter, post: Post, light: Light) -> None:
    """Paint one post and what it carries."""
    if post.z < 2.0 or not painter.shows(post.x, post.z, 3.0):
        return
    rng = Random(post.seed)
    shade = light.on(-post.side, 0, 0) * 0.85
    painter_of = {
        "lamp": _lamp,
        "sign": _sign,
        "signal": _signal,
        "bollard": _bollard,
        "board": _board,
        "bin": _bin,
        "shelter": _shelter,
    }
    painter_of[post.kind](painter, post, shade, rng)


def _stem(painter: Painter, post: Post, height: float, width: float, colour: Colour) -> None:
    painter.begin(POLE, post.z, texture=0.05)
    ends = upright(post.x, post.z, np.array([[(0.0, 0.0), (0.0, height)]]))
    painter.lines(ends, [width], [colour])


def _lamp(painter: Painter, post: Post, shade: float, rng: Random) -> None:
    height = rng.choice((rng.uniform(4, 6), rng.uniform(7, 10)))
    metal = tint(
        vary(rng, rng.choice(((96, 100, 98), (60, 64, 62), (130, 132, 130), (40, 52, 44))), 0.2), shade
    )
    _stem(painter, post, height, rng.uniform(0.11, 0.2), metal)
    reach = -post.side * rng.uniform(0.5, 1.9)
    arm = np.array([[(0.0, height), (reach, height + rng.uniform(0.0, 0.5))]])
    painter.lines(upright(post.x, post.z, arm), [0.09], [metal])
    head = rectangle(reach - 0.32, arm[0, 1, 1] - 0.1, reach + 0.32, arm[0, 1, 1] + 0.12)
    painter.faces(upright(post.x, post.z, np.array([head])), [tint(metal, 1.2)])


def _sign(painter: Painter, post: Post, shade: float, rng: Random) -> None:
    height = rng.uniform(2.0, 3.3)
    _stem(painter, post, height + 0.3, rng.uniform(0.07, 0.11), tint((112, 114, 112), shade))
    painter.begin(SIGN, post.z, texture=0.03)
    kind = rng.choice(("round", "triangle", "square", "square", "direction", "back"))
    size = rng.uniform(0.32, 0.55)
    flip = {"direction": rng.uniform(1.5, 2.8)}.get(kind, 1.0)
    fill: Colour = rng.choice(((30, 60, 140), (225, 225, 220), (24, 92, 60), (205, 170, 40), (160, 30, 28)))
    if kind == "back":
        fill = (96, 98, 98)
    if kind == "triangle":
        outer = np.array([(-size, height - size * 0.8), (0, height + size), (size, height - size * 0.8)])
        rim, inner = RED, (228.0, 228.0, 224.0)
    elif kind in {"round", "back"}:
        outer, rim = ellipse(0, height, size, size), rng.choice((RED, fill))
        inner = fill if rim != fill else tint(fill, 1.1)
    else:
        outer = np.array(rectangle(-size * flip, height - size, size * flip, height + size * 1.1))
        rim, inner = tint(fill, 0.9), fill
    centre = outer.mean(axis=0)
    painter.faces(upright(post.x, post.z, outer[None]), [tint(rim, shade)])
    painter.faces(
        upright(post.x, post.z, ((outer - centre) * 0.76 + centre)[None]), [tint(inner, shade)], solid=False
    )
    mark = tint((40, 40, 40) if sum(inner) > 380 else (225, 225, 222), shade)
    bar = [rectangle(-size * 0.4 * flip, centre[1] - 0.07, size * 0.4 * flip, centre[1] + 0.07)]
    painter.faces(upright(post.x, post.z, np.array(bar)), [mark], solid=False)
    if rng.random() < 0.3:
        plate = [rectangle(-size, height - size * 2.2, size, height - size * 1.2)]
        painter.faces(upright(post.x, post.z, np.array(plate)), [tint((220, 220, 214), shade)])


def _signal(painter: Painter, post: Post, shade: float, rng: Random) -> None:
    height = rng.uniform(2.6, 3.6)
    _stem(painter, post, height, 0.13, tint((60, 62, 62), shade))
    painter.begin(SIGN, post.z, texture=0.03)
    wide = rng.uniform(0.2, 0.32)
    box = [rectangle(-wide, height - 0.7, wide, height + 0.45)]
    painter.faces(upright(post.x, post.z, np.array(box)), [tint((24, 25, 26), shade)])
    lit = rng.choice((0, 2, 2))
    lamps = ((210, 40, 30), (220, 150, 40), (70, 210, 130))
    discs = np.array([ellipse(0, height + 0.25 - 0.36 * k, 0.11, 0.11) for k in range(3)])
    colours = [lamps[k] if k == lit else tint(lamps[k], 0.22) for k in range(3)]
    painter.faces(upright(post.x, post.z, discs), colours, solid=False)


def _bollard(painter: Painter, post: Post, shade: float, rng: Random) -> None:
    colour = vary(rng, rng.choice(((40, 42, 42), (200, 200, 194), (110, 36, 30), (92, 92, 90))), 0.2)
    height = rng.uniform(0.8, 1.2)
    _stem(painter, post, height, rng.uniform(0.12, 0.22), tint(colour, shade))
    band = upright(post.x, post.z, np.array([[(0.0, height * 0.78), (0.0, height * 0.9)]]))
    painter.lines(band, [0.14], [tint((205, 200, 180), shade)])


def _board(painter: Painter, post: Post, shade: float, rng: Random) -> None:
    """A hanging sign, a bus-stop flag or an advertisement."""
    low, wide, tall = rng.uniform(1.0, 3.4), rng.uniform(0.6, 1.5), rng.uniform(0.7, 2.0)
    _stem(painter, post, low + tall, 0.1, tint((80, 80, 82), shade))
    painter.begin(SIGN, post.z, texture=0.06)
    colour = vary(
        rng, rng.choice(((150, 34, 30), (40, 60, 120), (205, 200, 190), (40, 90, 60), (30, 30, 34))), 0.2
    )
    face = np.array([rectangle(-wide / 2, low, wide / 2, low + tall)])
    painter.faces(upright(post.x, post.z, face), [tint(colour, shade)])
    ink = (230, 228, 220) if sum(colour) < 380 else (60, 50, 50)
    rows = [
        rectangle(-wide * 0.35, low + tall * s, wide * 0.35, low + tall * (s + 0.12))
        for s in (0.2, 0.45, 0.7)
    ]
    painter.faces(upright(post.x, post.z, np.array(rows)), [tint(ink, shade)] * 3, solid=False)


def _bin(painter: Painter, post: Post, shade: float, rng: Random) -> None:
    """Litter bins, cabinets, trolleys: present in the street and ignored in the labels."""
    painter.begin(IGNORE_INDEX, post.z, texture=0.06)
    wide, tall = rng.uniform(0.25, 0.7), rng.uniform(0.8, 1.7)
    colour = vary(rng, rng.choice(((36, 44, 38), (120, 34, 30), (92, 94, 92), (58, 58, 60))), 0.25)
    face = np.array([rectangle(-wide, 0, wide, tall), rectangle(-wide, tall, wide, tall + 0.1)])
    painter.faces(upright(post.x, post.z, face), [tint(colour, shade), tint(colour, 1.4 * shade)])


def _shelter(painter: Painter, post: Post, shade: float, rng: Random) -> None:
    """Bus shelters, sheds, scaffolding, stalls: large things without a class of their own."""
    painter.begin(IGNORE_INDEX, post.z, texture=0.15)
    wide, tall = rng.uniform(0.8, 2.2), rng.uniform(1.8, 3.2)
    colour = tint(
        vary(rng, rng.choice(((60, 64, 66), (96, 88, 78), (44, 50, 46), (120, 118, 112))), 0.3), shade
    )
    boxes = [rectangle(-wide, 0, wide, tall), rectangle(-wide, tall - 0.2, wide, tall)]
    colours = [colour, tint(colour, 1.4)]
    for _ in range(rng.randint(2, 6)):
        x, y = rng.uniform(-wide, wide * 0.7), rng.uniform(0.2, tall * 0.7)
        boxes.append(rectangle(x, y, min(x + rng.uniform(0.2, 1.0), wide), y + rng.uniform(0.2, 0.6)))
        colours.append(tint(colour, rng.uniform(0.3, 1.8)))
    painter.faces(upright(post.x, post.z, np.array(boxes)), colours)


def paint_fence(painter: Painter, fence: Fence, light: Light) -> None:
    """Paint one length of fence; railings are labelled as a whole and show what is behind them."""
    rng = Random(fence.seed)
    start = max(fence.start, 0.9)
    if fence.stop <= start:
        return
    painter.begin(FENCE, start, texture=0.18)
    tall = {
        "railing": rng.uniform(0.95, 1.3),
        "boards": rng.uniform(1.2, 2.0),
        "wall": rng.uniform(0.6, 1.6),
    }[fence.kind]
    x, shade = fence.x, light.on(-np.sign(fence.x), 0, 0)
    whole = np.array(
        [[(x, 0, start), (x, tall, start), (x, tall, fence.stop), (x, 0, fence.stop)]], dtype=float
    )
    if fence.kind == "railing":
        metal = tint(rng.choice(((52, 54, 54), (150, 152, 150), (40, 60, 50), (34, 34, 36))), shade)
        painter.claim(whole)
        posts = np.arange(start, fence.stop, 0.16 if start < 12 else 0.4)
        segments = [[(x, 0.1, z), (x, tall, z)] for z in posts.tolist()]
        segments += [[(x, y, start), (x, y, fence.stop)] for y in (0.15, tall - 0.12, tall)]
        painter.lines(np.array(segments), [0.03] * len(posts) + [0.06] * 3, [metal] * len(segments))
        return
    bare = WOOD if fence.kind == "boards" else rng.choice(MASONRY)
    colour = tint(vary(rng, bare, 0.35), shade)
    painter.faces(whole, [colour])
    lines = [[(x, 0, z), (x, tall, z)] for z in np.arange(start, fence.stop, 0.5).tolist()]
    if fence.kind == "boards" and start < 20:
        painter.lines(np.array(lines, dtype=float), [0.03] * len(lines), [tint(colour, 0.7)] * len(lines))
    cap = [(x, tall - 0.1, start), (x, tall, start), (x, tall, fence.stop), (x, tall - 0.1, fence.stop)]
    painter.faces(np.array([cap]), [tint(colour, 1.25)], solid=False)
