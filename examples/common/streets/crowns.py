"""Stamps of tree crowns, made once: bare ones grown as forking branches, leafy ones cut from noise."""

import math
from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .noise import screen
from .painter import Stamp

SIDE = 224
KINDS = 14


@cache
def bare(kind: int, mirrored: bool) -> Stamp:
    """A tree in winter, one of `KINDS`; the label covers the crown as a whole, as CamVid's annotators drew it."""
    if mirrored:
        return _mirror(bare(kind, False))
    rng = Random(kind)
    big = Image.new("L", (2 * SIDE, 2 * SIDE))
    draw = ImageDraw.Draw(big)
    stem = rng.uniform(0.14, 0.32)
    tips = [(0.5, 0.0, math.pi / 2, rng.uniform(0.035, 0.055), stem)]
    for level in range(8):
        grown = []
        for x, y, angle, width, length in tips:
            tip = (x + length * math.cos(angle), y + length * math.sin(angle))
            if _outside(*tip):
                continue
            ends = [(a * 2 * SIDE, (1 - b) * 2 * SIDE) for a, b in ((x, y), tip)]
            draw.line(ends, fill=255 if level < 6 else 170, width=max(1, round(width * 2 * SIDE)))
            for _ in range(rng.choice((2, 3, 3)) if level < 6 else 2):
                turned = angle + rng.gauss(0, 0.45)
                grown.append((*tip, turned, width * rng.uniform(0.5, 0.7), length * rng.uniform(0.6, 0.85)))
        rng.shuffle(grown)
        tips = grown[:260]
    cover = big.reduce(2)
    crown = (
        cover.point([0] * 40 + [255] * 216)
        .filter(ImageFilter.MaxFilter(9))
        .filter(ImageFilter.GaussianBlur(4))
    )
    return Stamp(cover, crown, None)


def _outside(x: float, y: float) -> bool:
    """Whether a twig leaves the crown's oval."""
    return y > 0.2 and (x - 0.5) ** 2 / 0.25 + (y - 0.55) ** 2 / 0.2 > 1


@cache
def leafy(kind: int, mirrored: bool) -> Stamp:
    """A tree or bush in leaf, lit from the left, one of `KINDS`; the last half stand on a trunk."""
    if mirrored:
        return _mirror(leafy(kind, False))
    rng = np.random.default_rng(kind)
    y, x = np.mgrid[1 : -1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)
    trunk = kind >= KINDS // 2
    low = float(rng.uniform(-0.7, -0.4)) if trunk else -1.0
    lift = (y - low) / (1 - low)
    pointed = float(rng.uniform(0, 0.7))
    wide = np.maximum(1e-3, 1 - pointed * np.clip(lift, 0, 1))
    oval = (x / wide) ** 2 + (2 * lift - 1) ** 2 if trunk else (x / wide) ** 2 + np.clip(lift, 0, 1) ** 2
    lumps, leaves = screen((SIDE, SIDE), 9, rng), screen((SIDE, SIDE), 42, rng)
    fine = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    crown = 0.8 - oval + 0.16 * lumps + 0.1 * leaves
    opaque = crown > 0.07 * fine
    tone = 0.85 + 0.3 * (lift - 0.5) - 0.18 * x + 0.16 * lumps + 0.2 * leaves + 0.16 * fine
    stem = trunk & (np.abs(x) < 0.045) & (lift < 0.4)
    tone = np.where(stem & ~opaque, 0.45, tone)
    cover, claim = opaque | stem, (crown > 0) | stem
    grey = [Image.fromarray((mask * 255).astype(np.uint8)) for mask in (cover, claim)]
    return Stamp(grey[0], grey[1], Image.fromarray(np.clip(tone * 128, 20, 255).astype(np.uint8)))


def _mirror(stamp: Stamp) -> Stamp:
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    tone = None if stamp.tone is None else stamp.tone.transpose(flip)
    return Stamp(stamp.cover.transpose(flip), stamp.claim.transpose(flip), tone)
