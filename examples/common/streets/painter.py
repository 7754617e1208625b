"""The canvas: colours and object numbers, painted together from far to near.

Everything visible belongs to an object. `Painter.begin` is the only place where an object gets its class, and
the object's number is what the second canvas stores: the label map is a table look-up on it, and so is the
map of instances.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .camera import NEAR, Camera, Floats
from .classes import IGNORE_INDEX

Colour = tuple[float, float, float]
OVERSAMPLING = 2
THRESHOLD = [0] * 128 + [255] * 128


@dataclass(frozen=True)
class Stamp:
    """A ready-made picture of something ragged, three grey images of one size.

    Attributes:
        cover: how opaque it is.
        claim: which pixels are labelled, above 127.
        tone: brightness, 128 for the colour as given; None is 128 throughout.
    """

    cover: Image.Image
    claim: Image.Image
    tone: Image.Image | None

    @cached_property
    def half(self) -> "Stamp":
        """The same at half the size."""
        tone = None if self.tone is None else self.tone.reduce(2)
        return Stamp(self.cover.reduce(2), self.claim.reduce(2), tone)


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
        """Replace the canvas by a picture (h, w, 3) and its object numbers (h, w), both of the final size."""
        height, width = self.camera.size
        self.image = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        self.ids = Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST)
        self._draw = ImageDraw.Draw(self.image)
        self._draw_ids = ImageDraw.Draw(self.ids)

    def inks(self, colours: Sequence[Colour]) -> list[int]:
        """Colours as the camera sees them, exposed and through the air, as Pillow packs them."""
        clear = (1.0 - self._fog) * self.exposure
        seen = np.array(colours, np.float64) * clear + np.array(self.haze) * self._fog
        packed = np.clip(seen, 0, 255).astype(np.int64) @ np.array([1, 256, 65536])
        return cast("list[int]", packed.tolist())

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
        smallest = 0.0 if solid else 0.6
        for corners, ink in zip(self._outlines(polygons, smallest, cull), self.inks(colours), strict=True):
            if corners:
                self._draw.polygon(corners, fill=ink)
                if solid:
                    self._draw_ids.polygon(corners, fill=self._current)

    def claim(self, polygons: Floats) -> None:
        """Give the pixels of world polygons (N, K, 3) to the current object without painting them."""
        for corners in self._outlines(polygons):
            if corners:
                self._draw_ids.polygon(corners, fill=self._current)

    def lines(self, segments: Floats, widths: Sequence[float], colours: Sequence[Colour]) -> None:
        """Paint world segments (N, 2, 3) as strokes of the given widths in metres, labelled at least a pixel wide."""
        viewed = self.camera.view(segments)
        if viewed[..., 2].min() < NEAR:
            return
        ends = self.camera.to_pixels(viewed).reshape(-1, 4).tolist()
        strokes = (
            np.rint(np.array(widths) * self.camera.pixels / viewed[..., 2].mean(axis=1)).astype(int).tolist()
        )
        for end, stroke, ink in zip(ends, strokes, self.inks(colours), strict=True):
            self._draw.line(end, fill=ink, width=max(1, stroke))
            self._draw_ids.line(end, fill=self._current, width=max(OVERSAMPLING, stroke))

    def stamp(
        self, x: float, z: float, half_width: float, height: float, stamp: Stamp, colour: Colour
    ) -> None:
        """Paint a stamp as an upright picture with its foot at the ground point (x, z), sizes in metres."""
        u, v, scale = self.camera.ground_point(x, z)
        if scale == 0:
            return
        while stamp.cover.height > max(28.0, 2 * height * scale):
            stamp = stamp.half
        left, top = u - half_width * scale, v - height * scale
        rows, columns = self.camera.size
        x0, y0 = max(0, round(left)), max(0, round(top))
        x1, y1 = min(columns, round(u + half_width * scale)), min(rows, round(v))
        if x1 - x0 < 2 or y1 - y0 < 2:
            return
        across, down = stamp.cover.width / (2 * half_width * scale), stamp.cover.height / (height * scale)
        source = (
            max((x0 - left) * across, 0.0),
            max((y0 - top) * down, 0.0),
            min((x1 - left) * across, stamp.cover.width),
            min((y1 - top) * down, stamp.cover.height),
        )
        size = (x1 - x0, y1 - y0)
        cover = stamp.cover.resize(size, Image.Resampling.BILINEAR, box=source)
        claim = stamp.claim.resize(size, Image.Resampling.NEAREST, box=source)
        area = (x0, y0, x1, y1)
        if stamp.tone is None:
            self.image.paste(self.inks([colour])[0], area, cover)
        else:
            tone = stamp.tone.resize(size, Image.Resampling.BILINEAR, box=source)
            self.image.paste(self._toned(tone, colour), area, cover)
        self.ids.paste(self._current, area, claim.point(THRESHOLD))

    def _toned(self, tone: Image.Image, colour: Colour) -> Image.Image:
        """A colour with a brightness that varies: 128 is the colour itself."""
        ramp = np.arange(256)[:, None] * (np.array(colour) * ((1.0 - self._fog) * self.exposure / 128))
        table = np.clip(ramp + np.array(self.haze) * self._fog, 0, 255).astype(np.uint8)
        return Image.fromarray(table[np.asarray(tone)])

    def overlay(self, polygon: Sequence[tuple[float, float]], colour: Colour) -> None:
        """Paint a polygon given in shares of the picture's width and height, whatever the camera."""
        height, width = self.camera.size
        corners = [(x * width, y * height) for x, y in polygon]
        self._draw.polygon(corners, fill=self.inks([colour])[0])
        self._draw_ids.polygon(corners, fill=self._current)

    def shadows(self, polygons: Sequence[Floats], strengths: Sequence[float]) -> None:
        """Darken what is painted so far under world quadrilaterals (4, 3), softly, each by its strength in [0, 1]."""
        mask = Image.new("L", self.image.size, 255)
        draw = ImageDraw.Draw(mask)
        outlines = self._outlines(np.array(polygons)) if polygons else []
        for corners, strength in zip(outlines, strengths, strict=True):
            if corners:
                draw.polygon(corners, fill=int(255 * (1 - strength)))
        mask = mask.filter(ImageFilter.BoxBlur(max(1, self.image.size[1] // 180)))
        self.image = ImageChops.multiply(self.image, Image.merge("RGB", (mask, mask, mask)))
        self._draw = ImageDraw.Draw(self.image)

    def sees(self, points: Floats) -> bool:
        """Whether the convex hull of world points (K, 3) may be in the picture."""
        viewed = self.camera.view(points)
        depth, height, width = viewed[:, 2], *self.camera.size
        if depth.max() < NEAR:
            return False
        room_x, room_y = depth * width / 2, depth * height / 2
        x, y = viewed[:, 0] * self.camera.pixels, viewed[:, 1] * self.camera.pixels
        outside = (x > room_x).all() or (x < -room_x).all() or (y > room_y).all() or (y < -room_y).all()
        return not outside

    def shows(self, x: float, z: float, reach: float) -> bool:
        """Whether something within `reach` metres of the ground point (x, z) may be in the picture."""
        u, _, scale = self.camera.ground_point(x, z)
        return scale > 0 and -reach * scale < u < self.camera.size[1] + reach * scale

    def result(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
        """The picture in [0, 255] (H, W, 3), its labels (H, W) and the strength of grain (H, W), all at final size."""
        picture, ids = np.asarray(self.image.reduce(OVERSAMPLING), dtype=np.float32), self._objects()
        return picture, np.array(self._classes, np.uint8)[ids], np.array(self._texture, np.float32)[ids]

    def instances(self, classes: Collection[int]) -> NDArray[np.int32]:
        """The objects of some classes at final size (H, W): those in sight are 1, 2, ..., all else is 0."""
        ids = self._objects()
        shown = np.unique(ids)
        shown = shown[np.isin(np.array(self._classes)[shown], list(classes))]
        numbers = np.zeros(len(self._classes), np.int32)
        numbers[shown] = np.arange(1, len(shown) + 1)
        return cast("NDArray[np.int32]", numbers[ids])

    def _objects(self) -> NDArray[np.int32]:
        """The object's number at each pixel, at final size (H, W)."""
        return np.asarray(self.ids)[OVERSAMPLING // 2 :: OVERSAMPLING, OVERSAMPLING // 2 :: OVERSAMPLING]

    def _outlines(self, polygons: Floats, smallest: float = 0.0, cull: bool = False) -> list[list[float]]:
        """World polygons (N, K, 3) as flat lists of canvas coordinates; empty for those that need no paint."""
        points, partial = self.camera.project(polygons)
        height, width = self.camera.size
        x, y = points[..., 0].T, points[..., 1].T
        left, right, top, bottom = x.min(axis=0), x.max(axis=0), y.min(axis=0), y.max(axis=0)
        shown = (right > 0) & (bottom > 0) & (left < width) & (top < height)
        shown &= (right - left >= smallest) | (bottom - top >= smallest)
        if cull:
            following = np.roll(points, -1, axis=1)
            area = points[..., 0] * following[..., 1] - points[..., 1] * following[..., 0]
            shown &= area.sum(axis=1) > 0
        result = points.reshape(len(points), -1).tolist()
        for index in np.flatnonzero(~shown).tolist():
            result[index] = []
        for index, clipped in partial.items():
            result[index] = clipped.ravel().tolist()
        return result


def stack(polygons: Sequence[Floats | Sequence[tuple[float, ...]]]) -> Floats:
    """Polygons of different numbers of corners as one array: the last corner of the shorter ones is repeated."""
    longest = max(len(polygon) for polygon in polygons)
    padded = [[*polygon, *[polygon[-1]] * (longest - len(polygon))] for polygon in polygons]
    return np.array(padded, dtype=np.float64)


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
