"""A thousand million logits and more: offsets beyond 31 bits, against torch's own loss in parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.speed.inputs import IGNORE_INDEX
from classbalance_losses import DyCELoss, WeightedCrossEntropyLoss

_SHAPES = (((1, 19, 7400, 7400), "float32"), ((1, 150, 4096, 4096), "bfloat16"))
_SMALL = (((1, 3, 12, 16), "float32"),)
_ROWS = 256  # rows of the map that torch gets at a time


def large(device: str, *, quick: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield all rows so far after each shape."""
    rows: list[dict[str, Any]] = []
    for shape, dtype in _SMALL if quick else _SHAPES:
        rows.append(_row(shape, dtype, device))
        yield rows


def _row(shape: tuple[int, ...], dtype: str, device: str) -> dict[str, Any]:
    draw = torch.Generator(device).manual_seed(0)
    logits = torch.empty(shape, dtype=getattr(torch, dtype), device=device).normal_(generator=draw)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=draw, device=device, dtype=torch.uint8)
    target[:, : shape[2] // 8] = IGNORE_INDEX
    logits.requires_grad_()
    value = WeightedCrossEntropyLoss(ignore_index=IGNORE_INDEX)(logits, target)
    value.backward()
    total, gradient_error, valid = 0.0, 0.0, int((target != IGNORE_INDEX).sum())
    for start in range(0, shape[2], _ROWS):
        part = logits.detach()[:, :, start : start + _ROWS].float().requires_grad_()
        labels = target[:, start : start + _ROWS].long()
        loss = F.cross_entropy(part, labels, ignore_index=IGNORE_INDEX, reduction="sum")
        (right,) = torch.autograd.grad(loss / valid, part)
        total += float(loss.detach())
        ours = logits.grad[:, :, start : start + _ROWS]  # type: ignore[index]
        scale = torch.finfo(ours.dtype).eps / valid
        gradient_error = max(gradient_error, float((ours.float() - right).abs().max()) / scale)
    mined = DyCELoss(ignore_index=IGNORE_INDEX)(logits, target)
    return {
        "logits": logits.numel(),
        "shape": list(shape),
        "dtype": dtype,
        "value_error": abs(float(value.detach()) * valid / total - 1),
        "gradient_error_in_eps_over_pixels": gradient_error,
        "dyce": float(mined.detach()),
    }
