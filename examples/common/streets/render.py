"""From a seed to a picture, its labels and its instances."""

from random import Random

import numpy as np
from numpy.typing import NDArray

from .classes import IGNORE_INDEX, THINGS
from .ground import paint_ground, paint_markings
from .painter import OVERSAMPLING, Painter
from .populate import populate
from .scene import Light, sample_camera, sample_light, sample_street
from .weather import develop

SMALLEST = 16


def render_street(
    seed: int, size: tuple[int, int] = (180, 240)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one street.

    The scene depends on the seed alone; the size only sets how finely it is drawn.

    Args:
        seed: non-negative; the same seed and size give the same bytes.
        size: height and width in pixels, at least 16 each.

    Returns:
        The image, uint8 (H, W, 3), and its labels, uint8 (H, W): an index of `CLASSES` or `IGNORE_INDEX`.

    Raises:
        ValueError: if the seed is negative or the size too small.
    """
    painter, light = _painted(seed, size)
    picture, labels, grain = painter.result()
    return develop(picture, labels, grain, light, seed), labels


def render_instances(
    seed: int, size: tuple[int, int] = (180, 240)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int32]]:
    """The street of `render_street`, to the byte, and its things told apart.

    Args:
        seed: as in `render_street`.
        size: as in `render_street`.

    Returns:
        The image (H, W, 3), its labels (H, W), and the instance of each pixel, int32 (H, W): 1, 2, ... for the
        vehicles, pedestrians and bicyclists in sight, from far to near; 0 for everything else.

    Raises:
        ValueError: as in `render_street`.
    """
    painter, light = _painted(seed, size)
    picture, labels, grain = painter.result()
    return develop(picture, labels, grain, light, seed), labels, painter.instances(THINGS)


def _painted(seed: int, size: tuple[int, int]) -> tuple[Painter, Light]:
    """The canvas with everything on it, and the weather."""
    if seed < 0:
        raise ValueError(f"Expected a seed of 0 or more, got {seed}.")
    if min(size) < SMALLEST:
        raise ValueError(f"Expected a height and width of at least {SMALLEST} pixels, got {size}.")
    rng = Random(seed)
    light = sample_light(rng)
    camera = sample_camera(rng, (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING))
    street = sample_street(rng)
    scene = populate(street, light, rng)
    painter = Painter(camera, light.horizon, light.visibility, light.exposure)
    road = paint_ground(painter, street, light, rng)
    paint_markings(painter, road, street, rng)
    painter.shadows(scene.shadows, scene.strengths)
    for _, job in sorted(scene.jobs, key=lambda pair: -pair[0]):
        job(painter, light)
    if rng.random() < 0.2:
        _bonnet(painter, rng)
    return painter, light


def _bonnet(painter: Painter, rng: Random) -> None:
    """The camera car's own bonnet at the foot of the picture, which CamVid ignores."""
    painter.begin(IGNORE_INDEX, 0.0)
    rise, lean = rng.uniform(0.02, 0.09), rng.uniform(-0.04, 0.04)
    rim = [(k / 12, 1 - rise * (1 - (k / 6 - 1) ** 2 * 0.7) + lean * (k / 12 - 0.5)) for k in range(13)]
    grey = rng.uniform(10, 60)
    painter.overlay([*rim, (1.0, 1.1), (0.0, 1.1)], (grey, grey, grey * 1.05))
