"""What lens, sensor and weather do to the finished picture."""

from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .classes import ROAD
from .noise import fractal, resize, screen
from .scene import Light

Plane = NDArray[np.float32]


def develop(
    picture: Plane, labels: NDArray[np.uint8], grain: Plane, light: Light, seed: int
) -> NDArray[np.uint8]:
    """Texture, wet road, stray light, tone, blur and noise.

    Args:
        picture: painted colours in [0, 255], (H, W, 3).
        labels: class indices, (H, W).
        grain: relative strength of the texture at each pixel, (H, W).
        light: the weather.
        seed: of this picture.

    Returns:
        The photograph, (H, W, 3).
    """
    rng, noise = Random(seed), np.random.default_rng(seed)
    height, width = labels.shape
    picture = picture * (1 + grain * _texture((height, width), noise))[..., None]
    if light.kind == "rain" or rng.random() < 0.08:
        picture = _wet(picture, labels, rng)
    picture += _veil(picture, rng.uniform(0.04, 0.22))
    picture = _tone(picture, light, rng)
    soft = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    radius = rng.uniform(0.1, 0.85) * height / 180
    photo = np.asarray(soft.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
    level = rng.uniform(0.8, 4.5)
    shot = noise.standard_normal((height, width), dtype=np.float32)[..., None]
    colour = noise.standard_normal(3).astype(np.float32) * 0.15
    speck = shot * level * (1 + colour)
    return np.asarray(np.clip(photo + speck, 0, 255), dtype=np.uint8)


def _texture(size: tuple[int, int], noise: np.random.Generator) -> Plane:
    """Grain of two scales, alike in every size of picture, deviation about 1."""
    shifted = np.roll(fractal(), tuple(noise.integers(0, 256, 2)), axis=(0, 1))
    coarse = resize(shifted[:192], size)
    return 0.6 * coarse + 0.8 * screen(size, 90, noise)


def _wet(picture: Plane, labels: NDArray[np.uint8], rng: Random) -> Plane:
    """A wet road shows the scene upside down, blurred."""
    height = picture.shape[0]
    small = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).resize((24, 60))
    mirror = np.asarray(small.transpose(Image.Transpose.FLIP_TOP_BOTTOM), dtype=np.float32)
    shifted = np.stack([resize(mirror[..., c], picture.shape[:2]) for c in range(3)], axis=-1)
    share = np.where(labels == ROAD, rng.uniform(0.1, 0.3), 0.0).astype(np.float32)
    share[: height // 2] = 0
    return picture + (shifted * 0.8 - picture) * share[..., None]


def _veil(picture: Plane, strength: float) -> Plane:
    """Light of the bright sky scattered in lens and windscreen."""
    height, width = picture.shape[:2]
    bright = np.maximum(picture.mean(axis=2) - 170, 0)
    small = Image.fromarray(bright).resize((32, 24), Image.Resampling.BOX)
    spread = np.asarray(small.convert("L").filter(ImageFilter.GaussianBlur(3)), dtype=np.float32)
    return (resize(spread, (height, width)) * strength)[..., None]


def _tone(picture: Plane, light: Light, rng: Random) -> Plane:
    """Saturation, contrast, colour cast and vignetting."""
    height, width = picture.shape[:2]
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + (picture - grey) * rng.uniform(0.55, 1.15)
    contrast = rng.uniform(0.9, 1.2)
    picture = 70 + (picture - 70) * contrast
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in (height, width))
    dark = 1 - np.float32(rng.uniform(0, 0.22)) * (0.5 * (y * y)[:, None] + 0.5 * (x * x)[None])
    return np.asarray(picture * dark[..., None] * np.array(light.cast, np.float32))
