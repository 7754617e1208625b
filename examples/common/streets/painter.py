"""The canvas: colours and object numbers, painted together from far to near.

Everything visible belongs to an object. `Painter.begin` is the only place where an object gets its class, and
the object's number is what the second canvas stores: the label map is a table look-up on it, and so
would be a map of instances.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .camera import NEAR, Camera, Floats
from .classes import IGNORE_INDEX

Colour = tuple[float, float, float]
OVERSAMPLING = 2


class Painter:
    """Paints world polygons for one camera.

    Args:
        camera: the camera; its size is the canvas, `OVERSAMPLING` times the final picture.
        haze: colour of the air.
        visibility: metres after which 63 % of a colour is haze.
        exposure: factor on every colour but the haze.
    """

    def __init__(self, camera: Camera, haze: Colour, visibility: float, exposure: float) -> None:
        self.camera = camera
        self.haze = haze
        self.exposure = exposure
        self.visibility = visibility
        height, width = camera.size
        self.image = Image.new("RGB", (width, height))
        self.ids = Image.new("I", (width, height))
        self._draw = ImageDraw.Draw(self.image)
        self._draw_ids = ImageDraw.Draw(self.ids)
        self._classes = [IGNORE_INDEX]
        self._texture = [0.0]
        self._fog = 0.0
        self._current = 0

    def begin(self, class_index: int, depth: float, texture: float = 0.05) -> int:
        """Start an object: what is painted from here on is part of it, until the next call.

        Args:
            class_index: its class, or `IGNORE_INDEX`.
            depth: metres from the camera, for the haze.
            texture: relative strength of the grain laid over it.

        Returns:
            The object's number.
        """
        self._classes.append(class_index)
        self._texture.append(texture)
        self._fog = 1.0 - math.exp(-max(depth, 0.0) / self.visibility)
        self._current = len(self._classes) - 1
        return self._current

    def resume(self, number: int) -> None:
        """Go on painting an earlier object, one near enough to be free of haze."""
        self._current = number
        self._fog = 0.0

    def load(self, image: NDArray[np.uint8], ids: NDArray[np.int32]) -> None:
        """Replace the canvas by a picture (H, W, 3) and its object numbers (H, W)."""
        self.image = Image.fromarray(image)
        self.ids = Image.fromarray(ids)
        self._draw = ImageDraw.Draw(self.image)
        self._draw_ids = ImageDraw.Draw(self.ids)

    def ink(self, colour: Colour) -> tuple[int, int, int]:
        """A colour as the camera sees it, exposed and through the air before the current object."""
        clear = (1.0 - self._fog) * self.exposure
        mixed = [
            min(255, max(0, int(c * clear + h * self._fog))) for c, h in zip(colour, self.haze, strict=True)
        ]
        return mixed[0], mixed[1], mixed[2]

    def faces(
        self, polygons: Floats, colours: Sequence[Colour], *, solid: bool = True, cull: bool = False
    ) -> None:
        """Paint world polygons (N, K, 3), in order.

        Args:
            polygons: corners in metres.
            colours: one colour each.
            solid: also claim the pixels for the current object; False for a detail that lies inside it.
            cull: leave out polygons that turn their back (corners run clockwise as seen from the front).
        """
        for points, colour in zip(self.camera.project(polygons), colours, strict=True):
            if points is None or not self._visible(points) or (cull and _area(points) <= 0):
                continue
            corners = [tuple(p) for p in points.tolist()]
            self._draw.polygon(corners, fill=self.ink(colour))
            if solid:
                self._draw_ids.polygon(corners, fill=self._current)

    def claim(self, polygons: Floats) -> None:
        """Give the pixels of world polygons (N, K, 3) to the current object without painting them."""
        for points in self.camera.project(polygons):
            if points is not None and self._visible(points):
                self._draw_ids.polygon([tuple(p) for p in points.tolist()], fill=self._current)

    def lines(self, segments: Floats, widths: Iterable[float], colours: Sequence[Colour]) -> None:
        """Paint world segments (N, 2, 3) as strokes of the given widths in metres; their labels are a pixel at least."""
        viewed = self.camera.view(segments)
        if viewed[..., 2].min() < NEAR:
            return
        ends = self.camera.to_pixels(viewed).tolist()
        scales = (self.camera.pixels / viewed[..., 2].mean(axis=1)).tolist()
        for (a, b), scale, width, colour in zip(ends, scales, widths, colours, strict=True):
            stroke = max(1, round(width * scale))
            self._draw.line((*a, *b), fill=self.ink(colour), width=stroke)
            self._draw_ids.line((*a, *b), fill=self._current, width=max(OVERSAMPLING, stroke))

    def overlay(self, polygon: Sequence[tuple[float, float]], colour: Colour) -> None:
        """Paint a polygon given in shares of the picture's width and height, whatever the camera."""
        height, width = self.camera.size
        corners = [(x * width, y * height) for x, y in polygon]
        self._draw.polygon(corners, fill=self.ink(colour))
        self._draw_ids.polygon(corners, fill=self._current)

    def spots(
        self, points: Floats, radii: Sequence[float], colours: Sequence[Colour], *, solid: bool = True
    ) -> None:
        """Paint discs that face the camera at world points (N, 3), radii in metres."""
        viewed = self.camera.view(points)
        if viewed[..., 2].min() < 0.7:
            return
        centres = self.camera.to_pixels(viewed).tolist()
        scales = (self.camera.pixels / viewed[..., 2]).tolist()
        for (x, y), scale, radius, colour in zip(centres, scales, radii, colours, strict=True):
            r = radius * scale
            box = (x - r, y - r, x + r, y + r)
            self._draw.ellipse(box, fill=self.ink(colour))
            if solid:
                self._draw_ids.ellipse(box, fill=self._current)

    def shadows(self, polygons: Sequence[Floats], strengths: Sequence[float]) -> None:
        """Darken what is painted so far under world polygons (K, 3), softly, each by its strength in [0, 1]."""
        mask = Image.new("L", self.image.size, 255)
        draw = ImageDraw.Draw(mask)
        for polygon, strength in zip(polygons, strengths, strict=True):
            points = self.camera.project(polygon[None])[0]
            if points is not None and self._visible(points):
                draw.polygon([tuple(p) for p in points.tolist()], fill=int(255 * (1 - strength)))
        mask = mask.filter(ImageFilter.BoxBlur(max(1, self.image.size[1] // 180)))
        self.image = ImageChops.multiply(self.image, Image.merge("RGB", (mask, mask, mask)))
        self._draw = ImageDraw.Draw(self.image)

    def scale(self, x: float, z: float) -> float:
        """Canvas pixels per metre at the ground point (x, z); 0 behind the camera."""
        depth = float(self.camera.view(np.array([x, 0.0, z]))[2])
        return self.camera.pixels / depth if depth > 0.5 else 0.0

    def result(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
        """The picture in [0, 255] (H, W, 3), its labels (H, W) and the strength of grain (H, W), all at final size."""
        picture = np.asarray(self.image.reduce(OVERSAMPLING), dtype=np.float32)
        ids = np.asarray(self.ids)[OVERSAMPLING // 2 :: OVERSAMPLING, OVERSAMPLING // 2 :: OVERSAMPLING]
        return picture, np.array(self._classes, np.uint8)[ids], np.array(self._texture, np.float32)[ids]

    def _visible(self, points: Floats) -> bool:
        height, width = self.camera.size
        low, high = points.min(axis=0), points.max(axis=0)
        return bool(high[0] >= 0 and high[1] >= 0 and low[0] < width and low[1] < height)


def _area(points: Floats) -> float:
    """Signed area of a canvas polygon (K, 2), positive when the corners run clockwise on the screen."""
    x, y = points[:, 0], points[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))


def upright(x: float, z: float, shape: Floats, turn: float = 0.0) -> Floats:
    """A flat upright shape: (..., 2) of sideways and up, in metres, set at the ground point (x, z), as (..., 3).

    `turn` is the angle of its sideways axis away from the x axis, in radians.
    """
    out = np.empty((*shape.shape[:-1], 3))
    out[..., 0] = x + shape[..., 0] * math.cos(turn)
    out[..., 1] = shape[..., 1]
    out[..., 2] = z + shape[..., 0] * math.sin(turn)
    return out


def rectangle(left: float, bottom: float, right: float, top: float) -> list[tuple[float, float]]:
    """Corners of an upright rectangle, clockwise from the bottom left."""
    return [(left, bottom), (left, top), (right, top), (right, bottom)]


def ellipse(x: float, y: float, rx: float, ry: float, corners: int = 12) -> Floats:
    """Corners (corners, 2) of an ellipse."""
    angle = np.arange(corners) * (2 * math.pi / corners)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=-1)


def tint(colour: Colour, factor: float) -> Colour:
    """A colour made darker or lighter."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor
