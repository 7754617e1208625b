"""Write ``vectors.json``: inputs, and what the loop references make of them.

Run ``python tests/golden/generate.py`` after a deliberate change of a definition, and review the difference: a change
of these numbers is a change of what the losses mean. The inputs come from formulas, not from a random generator, whose
numbers depend on its version.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import references
from cases import CORE, FEATURES, Case, Sample

PATH = Path(__file__).with_name("vectors.json")
IMAGES, CLASSES, HEIGHT, WIDTH, IGNORED = 2, 4, 2, 4, 255


def wave(*shape: int, scale: float) -> torch.Tensor:
    """Irregular numbers with three decimals."""
    values = [round(scale * math.sin(12.9898 * k + 0.37 * k * k), 3) for k in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def inputs() -> Sample:
    """Four classes of unequal frequency, three ignored pixels, weights between 0 and 2."""
    pixels = torch.arange(IMAGES * HEIGHT * WIDTH).reshape(IMAGES, HEIGHT, WIDTH)
    target = torch.tensor([0, 0, 0, 1, 1, 0, 2, 0, 1, 3, 0, 0, 2, 1, 0, 0]).reshape(pixels.shape)
    return Sample(
        input=wave(IMAGES, CLASSES, HEIGHT, WIDTH, scale=3.0),
        target=torch.where(pixels % 6 == 5, IGNORED, target),
        ignore_index=IGNORED,
        pixel_weight=(pixels * 5 % 9).double() / 4,
        features=wave(IMAGES, FEATURES, HEIGHT, WIDTH, scale=1.0),
    )


def vector(case: Case) -> dict[str, Any]:
    result = case.expected(inputs())
    return {
        "none": result.pixel.tolist(),
        "sum": result.sum,
        "mean": result.mean,
        "gradient of mean": result.mean_grad.tolist(),
        **{name: list(values) for name, values in result.notes.items()},
    }


def projections() -> list[dict[str, Any]]:
    """Interior, partly zero, one-hot, tied and equal solutions of the quadratic programme."""
    vectors = []
    for g in ([0.1, 0.5, 0.9, 1.3], [0.0, 0.0, 2.0, 2.0, 7.5], [0.3] * 6, [1e-6, 1e-3, 1.0]):
        for strength in (0.01, 0.5, 10.0):
            v = references.solve_class_weights(g, regularization=strength, total=len(g))
            vectors.append({"squared_norms": g, "regularization": strength, "weights": v})
    return vectors


def rounded(value: Any) -> Any:
    """13 digits: what two machines' math libraries agree on."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.13g}") if isinstance(value, float) else value


def make() -> dict[str, Any]:
    given = inputs()
    tensors = {
        name: getattr(given, name).tolist() for name in ("input", "target", "pixel_weight", "features")
    }
    vectors: dict[str, Any] = rounded(
        {
            "inputs": {**tensors, "ignore_index": IGNORED},
            "losses": {case.id: vector(case) for case in CORE},
            "projections": projections(),
        }
    )
    return vectors


def dump(value: Any, depth: int = 2) -> str:
    """JSON with a line for each entry of the upper levels, so that differences are readable."""
    if isinstance(value, dict) and depth:
        inner = ",\n".join(f"{json.dumps(k)}: {dump(v, depth - 1)}" for k, v in value.items())
        return "{\n" + inner + "\n}"
    return json.dumps(value)


if __name__ == "__main__":
    PATH.write_text(dump(make(), 3) + "\n")
