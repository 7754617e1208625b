"""Remedies of the tasks of labels, and of soft labels: done to the wrong input, they give what was meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_remedies import DRAW, LOGITS, SIZE, WEIGHT, C, N, Wrong, law
from torch import Tensor

from classbalance_losses import functional

LOSSES = [functional.weighted_cross_entropy_loss, functional.dice_loss, functional.dyce_loss]
ONE = LOGITS[:, :1]
LABELS = {
    "binary": torch.randint(2, (N, 1, *SIZE), generator=DRAW),
    "multilabel": torch.randint(2, (N, C, *SIZE), generator=DRAW),
}
HOLE = torch.rand(N, 1, *SIZE, generator=DRAW) < 0.3
SHARES = torch.rand(N, C, *SIZE, generator=DRAW).softmax(1)


def row(task: str, steps: list[Any], fix: str = "target", *, wrong: dict[str, Any], **meant: Any) -> Wrong:
    """A wrong call of a task that the user knows of."""
    right = {"input": ONE if task == "binary" else LOGITS, "target": LABELS[task], "task": task, **meant}
    return Wrong(steps, right, fix, {"task": task, **wrong})


def of_labels(task: str) -> dict[str, Wrong]:
    """What goes wrong with one label as with many."""
    labels, logits = LABELS[task], ONE if task == "binary" else LOGITS
    out, left, whole = (
        labels.masked_fill(HOLE, 255),
        labels.masked_fill(HOLE, -1),
        (ValueError, "target.long()"),
    )
    grey = torch.rand(labels.shape, generator=DRAW)
    rows = {
        "floats, 255 left out": row(
            task,
            [whole, (IndexError, "ignore_index=255")],
            wrong={"target": out.float()},
            target=out,
            ignore_index=255,
        ),
        "floats, -1 left out": row(
            task,
            [whole, (IndexError, "ignore_index=-1")],
            wrong={"target": left.float()},
            target=left,
            ignore_index=-1,
        ),
        "floats, nothing else": row(
            task,
            [whole, (IndexError, "ignore_index=255")],
            wrong={"target": torch.full_like(logits, 255)},
            target=torch.full_like(labels, 255),
            ignore_index=255,
        ),
        "floats of 0 and 255": row(
            task, [whole, (IndexError, "(target == 255).long()")], wrong={"target": 255.0 * labels}
        ),
        "floats of -1 and 1": row(
            task, [whole, (IndexError, "(target == 1).long()")], wrong={"target": 2.0 * labels - 1}
        ),
        "0 and 1 by ToTensor": row(
            task,
            [(ValueError, "(target * 255).round()")],
            wrong={"target": labels / 255},
            target=labels.float(),
        ),
        "grey": row(
            task, [(ValueError, "target / 255")], wrong={"target": grey * 255}, target=grey * 255 / 255
        ),
        "a teacher's logits": row(
            task,
            [(ValueError, "target.sigmoid()")],
            wrong={"target": 4 * logits},
            target=(4 * logits).sigmoid(),
        ),
        "swapped": row(
            task, [(TypeError, "input, target = target, input")], wrong={"input": labels, "target": logits}
        ),
        "channel last": row(
            task, [(ValueError, "input.movedim(-1, 1)")], "input", wrong={"input": logits.movedim(1, -1)}
        ),
        "a weight of all labels": row(
            task,
            [(ValueError, "pixel_weight.unsqueeze(1).expand(target.shape)")],
            "pixel_weight",
            wrong={"pixel_weight": WEIGHT},
            pixel_weight=WEIGHT.unsqueeze(1).expand(labels.shape),
        ),
    }
    return {f"{task}, {name}": made for name, made in rows.items()}


BATCH = "input, target = input.unsqueeze(0), target.unsqueeze(0)"
CALLS = {
    **of_labels("binary"),
    **of_labels("multilabel"),
    "binary, no batch": row(
        "binary",
        [(ValueError, BATCH)],
        wrong={"input": ONE[0], "target": LABELS["binary"][0, 0]},
        input=ONE[:1],
        target=LABELS["binary"][:1, 0],
    ),
    "binary, a channel for each sign": row(
        "binary",
        [(ValueError, "target[:, 1:]")],
        wrong={"target": torch.cat([1 - LABELS["binary"], LABELS["binary"]], 1)},
    ),
    "shares of another size": Wrong(
        [(TypeError, 'upsample="linear"')],
        {"input": LOGITS[..., ::2, ::2], "target": SHARES, "upsample": "linear"},
        wrong={"target": SHARES},
    ),
}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("name", CALLS)
def test_remedy_gives_what_was_meant(loss: Any, name: str) -> None:
    law(loss, CALLS[name])


def test_what_no_remedy_can_guess_is_named() -> None:
    def call(task: str, target: Tensor) -> None:
        functional.dice_loss(ONE if task == "binary" else LOGITS, target, task=task)

    for task in ("binary", "multilabel"):
        with pytest.raises(
            ValueError, match=rf"input holds {N} images and target 1: take both from one batch"
        ):
            call(task, LABELS[task][:1])
    with pytest.raises(TypeError, match=rf"a share of each of the {C} classes on axis 1, not {C + 1}"):
        call("multiclass", torch.full((N, C + 1, *SIZE), 1 / (C + 1)))
    faint = torch.rand(LABELS["binary"].shape, generator=DRAW) / 255
    assert functional.dice_loss(ONE, faint, task="binary").isfinite()
