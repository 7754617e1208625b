"""A pinhole camera over a ground plane, and the bend of the road.

World axes: x to the right, y up, z along the road, in metres; the camera stands at (0, height, 0).
Every world point passes `Camera.view`, which also bends the road (x grows by ``bend * z**2``), so the
scene is laid out along a straight street and the picture still shows a curve.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NEAR = 0.4  # metres: what lies closer to the image plane is clipped away


@dataclass(frozen=True)
class Camera:
    """Where the camera stands and looks.

    Attributes:
        size: canvas height and width in pixels.
        height: metres above the ground.
        pitch: radians, positive looks up (the horizon moves down).
        yaw: radians, positive looks to the right.
        roll: radians, positive turns the picture clockwise.
        focal: focal length in canvas heights.
        bend: curvature of the road in 1/metre (half of it, to be exact: x moves by bend * z**2).
    """

    size: tuple[int, int]
    height: float
    pitch: float
    yaw: float
    roll: float
    focal: float
    bend: float

    @cached_property
    def rotation(self) -> Floats:
        """World to camera axes (x right, y up, z forward), shape (3, 3)."""
        (cy, sy), (cp, sp), (cr, sr) = ((np.cos(a), np.sin(a)) for a in (self.yaw, self.pitch, self.roll))
        yaw = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
        pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        return np.asarray(roll @ pitch @ yaw)

    @cached_property
    def _rows(self) -> list[list[float]]:
        rows: list[list[float]] = self.rotation.tolist()
        return rows

    @property
    def pixels(self) -> float:
        """Focal length in canvas pixels."""
        return self.focal * self.size[0]

    def view(self, points: Floats) -> Floats:
        """World points (..., 3) in camera axes."""
        moved = np.array(points, dtype=np.float64)
        moved[..., 0] += self.bend * moved[..., 2] ** 2
        moved[..., 1] -= self.height
        return np.asarray(moved @ self.rotation.T)

    def to_pixels(self, viewed: Floats) -> Floats:
        """Camera-axes points (..., 3) as canvas coordinates (..., 2); z must be positive."""
        scale = self.pixels / viewed[..., 2]
        out = np.empty((*viewed.shape[:-1], 2))
        out[..., 0] = self.size[1] / 2 + viewed[..., 0] * scale
        out[..., 1] = self.size[0] / 2 - viewed[..., 1] * scale
        return out

    def ground_point(self, x: float, z: float) -> tuple[float, float, float]:
        """A ground point's canvas column and row, and the canvas pixels per metre there; zeros where it is behind."""
        moved = x + self.bend * z * z
        right, up, ahead = (row[0] * moved - row[1] * self.height + row[2] * z for row in self._rows)
        if ahead < 0.5:
            return 0.0, 0.0, 0.0
        scale = self.pixels / ahead
        return self.size[1] / 2 + right * scale, self.size[0] / 2 - up * scale, scale

    def project(self, polygons: Floats) -> tuple[Floats, dict[int, Floats]]:
        """World polygons (N, K, 3) on the canvas.

        Returns:
            Canvas corners (N, K, 2), far off the canvas for polygons that are not wholly in front of the camera,
            and the visible part of those that are so in part, by index.
        """
        viewed = self.view(polygons)
        nearest = viewed[..., 2].min(axis=1)
        partial: dict[int, Floats] = {}
        if nearest.min() <= NEAR:
            behind = np.flatnonzero(nearest <= NEAR)
            for index in behind.tolist():
                clipped = clip_near(viewed[index])
                if clipped is not None:
                    partial[index] = self.to_pixels(clipped)
            viewed[behind] = (-1e6, 0.0, 1.0)
        return self.to_pixels(viewed), partial

    def ground(self, top: int, step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Where the canvas meets the ground: x (straightened) and z of every `step`-th pixel of the rows from `top`.

        Pixels at or above the horizon get z = 1e6.
        """
        height, width = self.size
        across = (np.arange(0, width, step, dtype=np.float32) + step / 2 - width / 2) / self.pixels
        down = (height / 2 - np.arange(top, height, step, dtype=np.float32) - step / 2) / self.pixels
        turn = self.rotation.astype(np.float32)
        rays = [
            turn[0, k] * across[None] + (turn[1, k] * down + turn[2, k])[:, None].astype(np.float32)
            for k in range(3)
        ]
        reach = np.float32(-self.height) / np.minimum(rays[1], np.float32(-1e-6))
        z = np.where(rays[1] < -1e-5, rays[2] * reach, np.float32(1e6))
        x = rays[0] * reach - np.float32(self.bend) * z * z
        return np.clip(x, -1e5, 1e5).astype(np.float32), z.astype(np.float32)

    def horizon(self) -> float:
        """Canvas row of the horizon at the middle column."""
        return self.size[0] / 2 + self.pixels * float(np.tan(self.pitch))


def clip_near(polygon: Floats) -> Floats | None:
    """The part of a camera-axes polygon (K, 3) beyond the near plane (Sutherland and Hodgman), or None."""
    kept: list[Floats] = []
    previous = polygon[-1]
    for point in polygon:
        if (point[2] > NEAR) != (previous[2] > NEAR):
            share = (NEAR * 1.001 - previous[2]) / (point[2] - previous[2])
            kept.append(previous + share * (point - previous))
        if point[2] > NEAR:
            kept.append(point)
        previous = point
    return np.array(kept) if len(kept) > 2 else None
