"""What a run is asked for: the device, the sizes, and the time that one contender may take."""

from __future__ import annotations

from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """The options of one run. ``quick`` takes tiny sizes: it shows that all works, its times mean nothing."""

    device: str = "cpu"
    quick: bool = False
    seconds: float = 0.5  # for the timed rounds of one contender, baseline included
    warm_up: int = 2  # rounds before, which bring memory back that a VM's host has taken
    min_rounds: int = 5
    max_rounds: int = 25

    def rounds(self, once: float) -> int:
        """How many rounds fit, where one takes ``once`` seconds."""
        return min(max(int(self.seconds / max(once, 1e-6)), self.min_rounds), self.max_rounds)

    @property
    def main_shape(self) -> Shape:
        """The shape at which every contender runs, compiled ones included."""
        return self.pixel_shapes[0]

    @property
    def pixel_shapes(self) -> tuple[Shape, ...]:
        """Logits (N, C, *): street scenes, ADE20K's 150 classes, a CT volume, CamVid."""
        if self.quick:
            return ((1, 3, 12, 16), (1, 4, 4, 6, 5))
        return (
            (2, 19, 512, 1024),
            (4, 19, 512, 512),
            (2, 150, 512, 512),
            (1, 14, 96, 160, 160),
            (8, 11, 180, 240),
        )

    @property
    def binary_shape(self) -> Shape:
        """Logits (N, 1, H, W), one a pixel: large images, as of cracks or of vessels."""
        return (1, 1, 12, 16) if self.quick else (4, 1, 1024, 1024)

    @property
    def contention_shapes(self) -> tuple[Shape, ...]:
        """Logits (N, C, *) that are measured beside busy processes."""
        if self.quick:
            return ((1, 3, 12, 16),)
        return ((2, 19, 512, 1024), (2, 150, 512, 512), (8, 11, 180, 240))

    @property
    def upsample_shapes(self) -> tuple[tuple[Shape, Shape], ...]:
        """Logits (N, C, *) at low resolution, and the target's spatial size: whole batches on a GPU."""
        if self.quick:
            return (((1, 3, 4, 5), (16, 20)), ((1, 3, 2, 3, 3), (4, 5, 6)))
        street, scenes = (8, 4) if self.device == "cuda" else (2, 1)
        return (
            ((street, 19, 128, 256), (512, 1024)),
            ((scenes, 150, 128, 128), (512, 512)),
            ((1, 14, 24, 40, 40), (96, 160, 160)),
        )

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The logits' dtypes."""
        return ("float32", "bfloat16")

    @property
    def pixel_sweep(self) -> tuple[Shape, ...]:
        """Shapes that differ in the number of pixels alone."""
        sides = (8, 16) if self.quick else (64, 128, 256, 512, 1024)
        return tuple((1, 19, side, side) for side in sides)

    @property
    def class_sweep(self) -> tuple[Shape, ...]:
        """Shapes that differ in the number of classes alone."""
        side = 8 if self.quick else 256
        return tuple((1, classes, side, side) for classes in ((2, 5) if self.quick else (2, 5, 19, 50, 150)))


def label(shape: Shape) -> str:
    """2×19×512×1024."""
    return "×".join(map(str, shape))
