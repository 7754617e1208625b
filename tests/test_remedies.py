"""Every error names a remedy that works: what the message says, done to the wrong input, gives what was meant."""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from cases import DEFAULTS, Case, over
from torch import Tensor

import classbalance_losses as cb
from classbalance_losses import functional

N, C, SIZE = 2, 3, (4, 5)
DRAW = torch.Generator().manual_seed(1)
LOGITS = torch.randn(N, C, *SIZE, generator=DRAW)
LABELS = torch.randint(C, (N, *SIZE), generator=DRAW)
PAIR = torch.randn(N, 2, *SIZE, generator=DRAW)  # logits of a binary problem
MASK = (LABELS > 0).long()
HOLES = LABELS.masked_fill(torch.rand(LABELS.shape, generator=DRAW) < 0.3, 255)
WEIGHT = torch.rand(N, *SIZE, generator=DRAW)
ONE_HOT = F.one_hot(LABELS, C).movedim(-1, 1)
PALETTE = torch.tensor([[0, 0, 0], [128, 64, 128], [70, 70, 70]], dtype=torch.uint8)
Heads = namedtuple("Heads", ["out", "aux"])


@dataclass
class Output:
    """What some models return: no mapping, no tuple."""

    loss: None = None
    logits: Tensor = field(default_factory=lambda: LOGITS)


@dataclass
class Wrong:
    """One wrong call. ``steps`` are the remedies of the errors that come one after the other, each in pieces.

    A piece is an option (``ignore_index=255``), an assignment, or an expression for the argument ``fix``.
    """

    steps: list[Any]
    meant: dict[str, Any]
    fix: str = "target"
    wrong: dict[str, Any] = field(default_factory=dict)


def target(wrong: Any, *steps: Any, meant: Tensor = LABELS, logits: Tensor = LOGITS, **options: Any) -> Wrong:
    """Wrong labels; ``options`` are those that the user meant."""
    return Wrong(list(steps), {"input": logits, "target": meant, **options}, wrong={"target": wrong})


def input_(wrong: Any, *steps: Any, meant: Tensor = LOGITS, labels: Tensor = LABELS) -> Wrong:
    return Wrong(list(steps), {"input": meant, "target": labels}, "input", {"input": wrong})


def weight(wrong: Any, *steps: Any, meant: Tensor = WEIGHT) -> Wrong:
    good = {"input": LOGITS, "target": LABELS, "pixel_weight": meant}
    return Wrong(list(steps), good, "pixel_weight", {"pixel_weight": wrong})


def painted(labels: Tensor, alpha: bool = False) -> Tensor:
    """An image (N, H, W, 3 or 4) that shows each class in its colour of the palette."""
    colours = PALETTE[labels]
    return torch.cat([colours, torch.full_like(colours[..., :1], 255)], -1) if alpha else colours


PICK_COLOUR = "(target[..., None, :] == palette).all(-1).int().argmax(-1)"
PER_IMAGE = "pixel_weight.reshape(-1, 1, 1).expand(target.shape)"
IMAGE_WEIGHT = torch.tensor([0.5, 2.0])
ON_IMAGES = IMAGE_WEIGHT[:, None, None].expand(N, *SIZE)
BACKGROUND = torch.cat([torch.zeros_like(PAIR[:, :1]), PAIR[:, :1]], 1)
GREY = torch.tensor([0, 127, 255])
ALL_BUT_ONE = HOLES.masked_fill(HOLES == 0, 2)

CALLS: dict[str, Wrong] = {
    # labels of another dtype
    "divided by ToTensor": target(
        LABELS.float() / 255, (TypeError, "(target * 255).round().to(torch.int64)")
    ),
    "divided by ToTensor, half": target(
        LABELS.half() / 255, (TypeError, "(target * 255).round().to(torch.int64)")
    ),
    "divided by ToTensor, 255 ignored": target(
        HOLES.float() / 255,
        (TypeError, "(target * 255).round().to(torch.int64)", "ignore_index=255"),
        meant=HOLES,
        ignore_index=255,
    ),
    "whole floats": target(LABELS.float(), (TypeError, "target.long()")),
    "whole doubles, one of them ignored": target(
        HOLES.double(),
        (TypeError, "target.long()"),
        (IndexError, "ignore_index=255"),
        meant=HOLES,
        ignore_index=255,
    ),
    "mask of 0.0 and 1.0, of a class": target(
        MASK.float(), (TypeError, "target.long()"), meant=MASK, logits=PAIR
    ),
    "mask of 0.0 and 1.0, that was 255 and is ignored": target(
        MASK.float(),
        (TypeError, "(target * 255).long()", "ignore_index=255"),
        meant=MASK * 255,
        logits=PAIR,
        ignore_index=255,
    ),
    "NaN for no label": target(
        LABELS.float().masked_fill(HOLES == 255, float("nan")),
        (TypeError, "target.nan_to_num(-100).long()"),
        meant=HOLES.masked_fill(HOLES == 255, -100),
    ),
    "probabilities of the object": target(
        MASK * 0.6 + 0.2, (TypeError, "(target > 0.5).long()"), meant=MASK, logits=PAIR
    ),
    "bool": target(MASK.bool(), (TypeError, "target.long()"), meant=MASK, logits=PAIR),
    "int8": target(LABELS.to(torch.int8), (TypeError, "target.long()")),
    "uint16": target(LABELS.to(torch.uint16), (TypeError, "target.long()")),
    "complex": target(LABELS.to(torch.complex64), (TypeError, "target.real"), (TypeError, "target.long()")),
    # one-hot labels
    "one-hot integers": target(ONE_HOT, (ValueError, "target.argmax(1)")),
    "one-hot bytes": target(ONE_HOT.to(torch.uint8), (ValueError, "target.long().argmax(1)")),
    "one-hot bools": target(ONE_HOT.bool(), (TypeError, "target.long().argmax(1)")),
    "one-hot, classes last": target(ONE_HOT.movedim(1, -1), (ValueError, "target.argmax(-1)")),
    "one-hot floats, classes last": target(ONE_HOT.movedim(1, -1).float(), (TypeError, "target.argmax(-1)")),
    "one-hot bytes with pixels of no class": target(
        ONE_HOT.to(torch.uint8) * (HOLES != 255).unsqueeze(1),
        (ValueError, "target.long().argmax(1).masked_fill(target.sum(1) == 0, -100)"),
        meant=HOLES.masked_fill(HOLES == 255, -100),
    ),
    "logits of a teacher": target(
        4.0 * ONE_HOT - 1.0, (ValueError, "target.softmax(1)"), meant=torch.softmax(4.0 * ONE_HOT - 1.0, 1)
    ),
    "soft labels, classes last": target(
        torch.softmax(4.0 * ONE_HOT, 1).movedim(1, -1),
        (TypeError, "target.movedim(-1, 1)"),
        meant=torch.softmax(4.0 * ONE_HOT, 1),
    ),
    # labels of another shape
    "(N, H, W, 1)": target(LABELS.unsqueeze(-1), (ValueError, "target.squeeze(-1)")),
    "(N, 1, H, W)": target(LABELS.unsqueeze(1), (ValueError, "target.squeeze(1)")),
    "(N, 1, H, W) from ToTensor": target(
        LABELS.unsqueeze(1) / 255,
        (TypeError, "(target * 255).round().to(torch.int64)"),
        (ValueError, "target.squeeze(1)"),
    ),
    "(N, H, W, 3) of a grey image": target(
        LABELS.unsqueeze(-1).expand(-1, -1, -1, 3).contiguous(), (ValueError, "target[..., 0]")
    ),
    "(N, 3, H, W) of a grey image": target(
        LABELS.unsqueeze(1).repeat(1, 3, 1, 1), (ValueError, "target[:, 0]")
    ),
    "(N, H, W, 3) colours": target(painted(LABELS), (ValueError, PICK_COLOUR)),
    "(N, 3, H, W) colours": target(
        painted(LABELS).movedim(-1, 1), (ValueError, PICK_COLOUR.replace("target", "target.movedim(1, -1)"))
    ),
    "(N, H, W, 4) colours": target(
        painted(LABELS, alpha=True), (ValueError, PICK_COLOUR.replace(", :]", ", :3]"))
    ),
    "(N, H·W)": target(LABELS.flatten(), (ValueError, f"target.reshape{(N, *SIZE)}")),
    "(N, W, H)": target(LABELS.transpose(1, 2), (ValueError, "target.transpose(-1, -2)")),
    "labels without a batch axis": target(
        LABELS[0], (ValueError, "target.unsqueeze(0)"), meant=LABELS[:1], logits=LOGITS[:1]
    ),
    "another size": target(
        LABELS.repeat(1, 2, 2),
        (ValueError, 'upsample="linear"'),
        meant=LABELS.repeat(1, 2, 2),
        upsample="linear",
    ),
    "another size, (N, 1, H, W)": Wrong(
        [(ValueError, "target.squeeze(1)")],
        {"input": LOGITS, "target": LABELS.repeat(1, 2, 2), "upsample": "linear"},
        wrong={"target": LABELS.repeat(1, 2, 2).unsqueeze(1), "upsample": "linear"},
    ),
    # values that are no classes
    "0 and 255, of a class": target(
        (MASK * 255).to(torch.uint8), (IndexError, "(target == 255).long()"), meant=MASK, logits=PAIR
    ),
    "255 alone, of a class": target(
        torch.full_like(MASK, 255),
        (IndexError, "(target == 255).long()"),
        meant=torch.ones_like(MASK),
        logits=PAIR,
    ),
    "0 and 255, that is ignored": target(
        MASK * 255, (IndexError, "ignore_index=255"), meant=MASK * 255, logits=PAIR, ignore_index=255
    ),
    "-1 and 1, of a class": target(
        MASK * 2 - 1, (IndexError, "(target == 1).long()"), meant=MASK, logits=PAIR
    ),
    "-1 and 1, that is ignored": target(
        MASK * 2 - 1, (IndexError, "ignore_index=-1"), meant=MASK * 2 - 1, logits=PAIR, ignore_index=-1
    ),
    "0 and 128": target(MASK * 128, (IndexError, "(target == 128).long()"), meant=MASK, logits=PAIR),
    "255 beside classes": target(HOLES, (IndexError, "ignore_index=255"), meant=HOLES, ignore_index=255),
    "grey levels": target(
        GREY[LABELS],
        (IndexError, "torch.searchsorted(torch.tensor([0, 127, 255], device=target.device), target.long())"),
    ),
    "grey levels from 255 down": target(
        GREY[2 - LABELS],
        (IndexError, "torch.searchsorted(torch.tensor([0, 127, 255], device=target.device), target.long())"),
        meant=2 - LABELS,
    ),
    "counted from 1": target((LABELS + 1).to(torch.uint8), (IndexError, "target.long() - 1")),
    "counted from 1, and 0 is none": target(
        (LABELS + 1).masked_fill(HOLES == 255, 0).to(torch.uint8),
        (IndexError, "target.long() - 1", "ignore_index=-1"),
        meant=LABELS.masked_fill(HOLES == 255, -1),
        ignore_index=-1,
    ),
    # no tensors
    "labels as an array": target(LABELS.numpy(), (TypeError, "torch.as_tensor(target)")),
    "labels as a flipped array": target(
        LABELS.flip(2).numpy()[:, :, ::-1], (TypeError, "torch.as_tensor(numpy.array(target))")
    ),
    "labels as a list of maps": target(list(LABELS), (TypeError, "torch.stack(target)")),
    "labels as a list of arrays": target(
        list(LABELS.numpy()), (TypeError, "torch.as_tensor(numpy.stack(target))")
    ),
    "labels as nested lists": target(LABELS.tolist(), (TypeError, "torch.tensor(target)")),
    "labels in a dict": target({"image": LOGITS, "labels": LABELS}, (TypeError, "target['labels']")),
    "logits as an array": input_(LOGITS.numpy(), (TypeError, "torch.as_tensor(input)")),
    "torchvision's outputs": input_({"out": LOGITS, "aux": LOGITS * 2}, (TypeError, "input['out']")),
    "a dict with one tensor": input_({"seg": LOGITS, "depth": None}, (TypeError, "input['seg']")),
    "a dict of logits": input_({"loss": torch.zeros(()), "logits": LOGITS}, (TypeError, "input['logits']")),
    "a named tuple": input_(Heads(LOGITS, LOGITS * 2), (TypeError, "input.out")),
    "a data class": input_(Output(), (TypeError, "input.logits")),
    "an object": input_(SimpleNamespace(logits=LOGITS), (TypeError, "input.logits")),
    "a tuple of heads, the first": input_((LOGITS, LOGITS * 2), (TypeError, "input[0]")),
    "logits of each image": input_(list(LOGITS), (TypeError, "torch.stack(input)")),
    # logits
    "integer logits": input_(
        (LOGITS * 8).long(), (TypeError, "input.float()"), meant=(LOGITS * 8).long().float()
    ),
    "complex logits": input_(LOGITS + 1j, (TypeError, "input.real")),
    "classes last": input_(LOGITS.movedim(1, -1), (ValueError, "input.movedim(-1, 1)")),
    "one logit": Wrong(
        [(ValueError, 'task="binary"')],
        {"input": PAIR[:, :1], "target": MASK, "task": "binary"},
        wrong={},
    ),
    "a single image": Wrong(
        [(ValueError, "input, target = input.unsqueeze(0), target.unsqueeze(0)")],
        {"input": LOGITS[:1], "target": LABELS[:1]},
        wrong={"input": LOGITS[0], "target": LABELS[0]},
    ),
    "swapped": Wrong(
        [(TypeError, "input, target = target, input")],
        {"input": LOGITS, "target": LABELS},
        wrong={"input": LABELS, "target": LOGITS},
    ),
    "swapped, labels as floats": Wrong(
        [(TypeError, "input, target = target, input"), (TypeError, "target.long()")],
        {"input": LOGITS, "target": LABELS},
        wrong={"input": LABELS.float(), "target": LOGITS},
    ),
    "swapped, labels (N, 1, H, W)": Wrong(
        [(TypeError, "input, target = target, input"), (ValueError, "target.squeeze(1)")],
        {"input": LOGITS, "target": LABELS},
        wrong={"input": LABELS.unsqueeze(1), "target": LOGITS},
    ),
    # weights of the pixels
    "weight (N,)": weight(IMAGE_WEIGHT, (ValueError, PER_IMAGE), meant=ON_IMAGES),
    "weight (N, 1, 1)": weight(IMAGE_WEIGHT[:, None, None], (ValueError, PER_IMAGE), meant=ON_IMAGES),
    "weight (N, 1, 1, 1)": weight(
        IMAGE_WEIGHT[:, None, None, None], (ValueError, PER_IMAGE), meant=ON_IMAGES
    ),
    "weight (N, 1, H, W)": weight(WEIGHT.unsqueeze(1), (ValueError, "pixel_weight.squeeze(1)")),
    "weight (N, H, W, 1)": weight(WEIGHT.unsqueeze(-1), (ValueError, "pixel_weight.squeeze(-1)")),
    "weight (H, W)": weight(
        WEIGHT[0], (ValueError, "pixel_weight.expand(target.shape)"), meant=WEIGHT[:1].expand(N, *SIZE)
    ),
    "weight ()": weight(
        torch.tensor(0.5),
        (ValueError, "pixel_weight.expand(target.shape)"),
        meant=torch.full((N, *SIZE), 0.5),
    ),
    "weight of another size": weight(
        WEIGHT[:, ::2, :2],
        (ValueError, "torch.nn.functional.interpolate(pixel_weight[:, None], size=(4, 5))[:, 0]"),
        meant=F.interpolate(WEIGHT[:, None, ::2, :2], size=SIZE)[:, 0],
    ),
    "weight as a number": weight(
        0.5,
        (TypeError, "torch.tensor(pixel_weight)"),
        (ValueError, "pixel_weight.expand(target.shape)"),
        meant=torch.full((N, *SIZE), 0.5),
    ),
    "weight as a list": weight(
        IMAGE_WEIGHT.tolist(),
        (TypeError, "torch.tensor(pixel_weight)"),
        (ValueError, PER_IMAGE),
        meant=ON_IMAGES,
    ),
    "weight as an array": weight(WEIGHT.numpy(), (TypeError, "torch.as_tensor(pixel_weight)")),
    "weight of bools": weight(MASK.bool(), (TypeError, "pixel_weight.float()"), meant=MASK.float()),
    "negative weight": weight(
        WEIGHT - 0.5, (ValueError, "pixel_weight.clamp(min=0)"), meant=(WEIGHT - 0.5).clamp(min=0)
    ),
    # the ignored label
    "nothing ignored": Wrong(
        [(TypeError, "ignore_index=-100")],
        {"input": LOGITS, "target": LABELS},
        wrong={"ignore_index": None},
    ),
    "a label as a float": target(HOLES, (TypeError, "ignore_index=255"), meant=HOLES, ignore_index=255),
    "several labels": Wrong(
        [
            (
                TypeError,
                "ignore_index=(0, 255)",
            )
        ],
        {"input": LOGITS, "target": HOLES.masked_fill(HOLES == 0, 255), "ignore_index": 255},
        wrong={"target": HOLES.to(torch.uint8), "ignore_index": {0, 255}},
    ),
}
CALLS["a label as a float"].wrong["ignore_index"] = 255.0
for value in (torch.tensor(255.0), "255"):
    named = CALLS["a label as a float"]
    CALLS[f"a label as {value!r}"] = replace(named, wrong={**named.wrong, "ignore_index": value})
for value in (numpy.array([0, 255]), torch.tensor([0, 255])):
    named = CALLS["several labels"]
    CALLS[f"several labels, {value!r}"] = replace(named, wrong={**named.wrong, "ignore_index": value})


def apply(pieces: tuple[str, ...], message: str, arguments: dict[str, Any], fix: str) -> dict[str, Any]:
    """Check that the message has every piece, and do what they say."""
    names = {
        "torch": torch,
        "numpy": numpy,
        "palette": PALETTE,
        "functional": functional,
        **vars(cb),
        **arguments,
    }
    fixed = dict(arguments)
    for piece in pieces:
        assert piece in message
        if re.match(r"\w+=[^=]", piece):
            fixed.update(eval(f"dict({piece})", names))
        elif re.match(r"[\w, ]+ = ", piece):
            exec(piece, names)
            fixed.update({name: names[name] for name in arguments})
        else:
            fixed[fix] = eval(piece, names)
    return fixed


def law(call: Callable[..., Tensor], row: Wrong) -> None:
    arguments = {**row.meant, **row.wrong}
    for name in ("ignore_index", "upsample", "task"):  # options that the user has yet to learn of
        if name not in row.wrong:
            arguments.pop(name, None)
    for error, *pieces in row.steps:
        with pytest.raises(error) as caught:
            call(**arguments)
        assert type(caught.value) is error
        arguments = apply(tuple(pieces), str(caught.value), arguments, row.fix)
    assert torch.equal(call(**arguments), call(**row.meant))


@over(DEFAULTS)
@pytest.mark.parametrize("name", CALLS)
def test_remedy_gives_what_was_meant(case: Case, name: str) -> None:
    """By the function and by the module."""
    row = CALLS[name]
    settings = case.settings(max(row.meant["input"].shape[1], 2))
    law(lambda **arguments: case.function(**settings, **arguments), row)

    def by_module(input: Any, target: Any, pixel_weight: Any = None, **options: Any) -> Tensor:
        return case.module(**settings, **options)(input, target, pixel_weight=pixel_weight)  # type: ignore[no-any-return]

    law(by_module, row)


@over(DEFAULTS)
def test_labels_that_were_interpolated(case: Case) -> None:
    """There is no way back from a mixture of two labels: the message says how to resize them in the first place."""
    settings = case.settings(C)
    resized = F.interpolate(LABELS[:, None].float(), SIZE[::-1], mode="bilinear")[:, 0]
    with pytest.raises(TypeError) as caught:
        case.function(LOGITS.transpose(2, 3), resized, **settings)
    words = re.search(r'mode="(\w+)"', str(caught.value))
    assert words is not None
    right = F.interpolate(LABELS[:, None].float(), SIZE[::-1], mode=words[1])[:, 0].long()
    assert set(right.unique().tolist()) <= {0, 1, 2}
    assert torch.isfinite(case.function(LOGITS.transpose(2, 3), right, **settings))


def test_tuple_of_heads_as_a_sum() -> None:
    loss, heads = functional.focal_loss, (LOGITS, LOGITS * 2)
    with pytest.raises(TypeError) as caught:
        loss(heads, LABELS)  # type: ignore[arg-type]
    words = re.search(r"sum\(.*\)", str(caught.value))
    assert words is not None
    total = eval(words[0], {"loss": loss, "input": heads, "target": LABELS})
    assert torch.equal(total, loss(LOGITS, LABELS) + loss(LOGITS * 2, LABELS))


def test_several_classes_a_pixel() -> None:
    """A softmax has one class a pixel: the message says which task has several."""
    target = torch.stack([LABELS > 0, LABELS > 1, LABELS < 2], 1).float()
    with pytest.raises(ValueError, match='task="multilabel"'):
        functional.focal_loss(LOGITS, target)
    loss = functional.weighted_cross_entropy_loss(LOGITS, target, task="multilabel")
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(LOGITS, target))


@over(DEFAULTS)
def test_one_device(case: Case) -> None:
    settings = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in case.settings(C).items()}
    away = {"input": LOGITS.to("meta"), "target": LABELS, "pixel_weight": WEIGHT}
    for name, words in (
        ("target", "target.to(input.device)"),
        ("pixel_weight", "pixel_weight.to(target.device)"),
    ):
        with pytest.raises(ValueError, match=r"got cpu\.") as caught:
            case.function(**settings, **away)
        away = apply((words,), str(caught.value), away, name)
    assert case.function(**settings, **away).shape == ()


CLASS_NUMBERS: dict[str, tuple[Any, type[Exception], str | None, list[float]]] = {
    "dict": ({1: 2.0, 0: 1.0, 2: 3.0}, TypeError, "[weight[c] for c in range(3)]", [1.0, 2.0, 3.0]),
    "dict with a gap": (
        {0: 0.5, 2: 3.0},
        TypeError,
        "[weight.get(c, 1.0) for c in range(3)]",
        [0.5, 1.0, 3.0],
    ),
    "dict of names": (
        {"road": 1.0, "pole": 9.0, "tram": 3.0},
        TypeError,
        "list(weight.values())",
        [1.0, 9.0, 3.0],
    ),
    "(1, C)": (torch.tensor([[1.0, 2.0, 3.0]]), ValueError, "weight.flatten()", [1.0, 2.0, 3.0]),
    "negative": (
        [1.0, -2.0, 3.0],
        ValueError,
        "torch.as_tensor(weight).nan_to_num(0, 0, 0).clamp(min=0)",
        [1, 0, 3],
    ),
    "infinite": (
        1 / torch.tensor([1.0, 0.0, 0.5]),
        ValueError,
        "torch.as_tensor(weight).nan_to_num(0, 0, 0)",
        [1, 0, 2],
    ),
    "nan": ([1.0, float("nan"), 3.0], ValueError, "torch.as_tensor(weight).nan_to_num(0, 0, 0)", [1, 0, 3]),
    "complex": (torch.tensor([1.0, 2.0, 3.0]) + 1j, TypeError, "weight.real", [1.0, 2.0, 3.0]),
    "values of a dict": ({0: 1.0, 1: 2.0, 2: 3.0}.values(), TypeError, "list(weight)", [1.0, 2.0, 3.0]),
    "list": ([1, 2, 3], TypeError, None, [1.0, 2.0, 3.0]),
    "array": (numpy.array([3, 2, 1])[::-1], TypeError, None, [1.0, 2.0, 3.0]),
    "list of tensors": (
        [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)],
        TypeError,
        None,
        [1.0, 2.0, 3.0],
    ),
}


@pytest.mark.parametrize("name", CLASS_NUMBERS)
def test_numbers_of_the_classes(name: str) -> None:
    """``weight`` and ``alpha``, of the functions and the modules: refused with a remedy, or taken as they are."""
    wrong, error, piece, meant = CLASS_NUMBERS[name]
    for word, function, module in (
        ("weight", functional.weighted_cross_entropy_loss, cb.WeightedCrossEntropyLoss),
        ("alpha", functional.focal_loss, cb.FocalLoss),
    ):
        calls: list[Callable[..., Tensor]] = [
            lambda function=function, **option: function(LOGITS, LABELS, **option),
            lambda module=module, **option: module(**option)(LOGITS, LABELS),
        ]
        for call in calls:
            given = {word: wrong}
            if piece is not None:
                with pytest.raises(error) as caught:
                    call(**given)
                given = apply((piece.replace("weight", word),), str(caught.value), given, word)
            assert torch.equal(call(**given), call(**{word: torch.tensor(meant, dtype=torch.float32)}))


def test_weights_that_are_no_numbers_of_the_classes() -> None:
    balanced = functional.pixel_frequency_weights(LABELS.flatten().bincount())
    function = partial(functional.weighted_cross_entropy_loss, LOGITS, LABELS)
    for weight, call in product(("balanced", cb.PixelFrequency), (cb.WeightedCrossEntropyLoss, function)):
        with pytest.raises(TypeError) as caught:
            call(weight)
        right = apply(("PixelFrequency()",), str(caught.value), {"weight": weight}, "weight")["weight"]
        loss = cb.WeightedCrossEntropyLoss(right)(LOGITS, LABELS)
        torch.testing.assert_close(loss, F.cross_entropy(LOGITS, LABELS, balanced))
    with pytest.raises(TypeError) as caught:
        cb.WeightedCrossEntropyLoss(4.0)  # type: ignore[arg-type]
    alone = [4.0]
    with pytest.raises(ValueError, match="second of two") as single:
        cb.WeightedCrossEntropyLoss(alone)
    message = str(single.value)
    assert apply(("[1.0, float(weight[0])]",), message, {"weight": alone}, "weight")["weight"] == [1.0, 4.0]
    pair = apply(("[1.0, float(weight)]",), str(caught.value), {"weight": 4.0}, "weight")["weight"]
    loss = cb.WeightedCrossEntropyLoss(pair)(PAIR, MASK)
    torch.testing.assert_close(loss, F.cross_entropy(PAIR, MASK, torch.tensor([1.0, 4.0])))


COUNTS = [7, 0, 4]
WEIGHTS_OF_COUNTS = [
    name for name in functional.__all__ if name.endswith("frequency_weights") and "wise" not in name
]


@pytest.mark.parametrize("name", [*WEIGHTS_OF_COUNTS, "effective_number_weights", "enet_weights"])
def test_counts_of_any_kind(name: str) -> None:
    function, more = getattr(functional, name), ({"num_images": 9} if name.startswith("image") else {})
    expected = function(torch.tensor(COUNTS), **more)
    for counts in (COUNTS, tuple(COUNTS), numpy.array(COUNTS), numpy.array(COUNTS, dtype=numpy.uint64)):
        assert torch.equal(function(counts, **more), expected)
    word = "image_counts" if more else "pixel_counts"
    for wrong, error, piece in (
        ([COUNTS, [0, 0, 0]], TypeError, f"torch.tensor({word})"),
        (dict(enumerate(COUNTS)), TypeError, f"[{word}[c] for c in range(3)]"),
        (torch.tensor([COUNTS, [0, 0, 0]]), ValueError, f"{word}.sum(0)"),
    ):
        with pytest.raises(error) as caught:
            function(wrong, **more)
        right = apply((piece,), str(caught.value), {word: wrong}, word)[word]
        assert torch.equal(function(right.sum(0) if piece.startswith("torch") else right, **more), expected)


INTEGERS = [numpy.int64(255), numpy.uint8(255), torch.tensor(255)]


@over(DEFAULTS)
@pytest.mark.parametrize("ignore_index", INTEGERS, ids=lambda value: type(value).__name__)
def test_any_integer_as_ignore_index(case: Case, ignore_index: Any) -> None:
    settings = case.settings(C)
    expected = case.function(LOGITS, HOLES, ignore_index=255, **settings)
    assert torch.equal(case.function(LOGITS, HOLES, ignore_index=ignore_index, **settings), expected)
    module = case.module(ignore_index=ignore_index, **settings)
    assert torch.equal(module(LOGITS, HOLES), expected)
    assert type(module.ignore_index) is int
    assert type(cb.ClassStatistics(C, ignore_index=ignore_index).ignore_index) is int


@pytest.mark.parametrize("alpha", [torch.tensor(0.25), numpy.float32(0.25), numpy.array(0.25)], ids=str)
def test_any_number_as_alpha(alpha: Any) -> None:
    expected = functional.focal_loss(LOGITS, LABELS, alpha=0.25)
    assert torch.equal(functional.focal_loss(LOGITS, LABELS, alpha=alpha), expected)
    assert torch.equal(cb.FocalLoss(alpha=alpha)(LOGITS, LABELS), expected)
    with pytest.raises(ValueError, match=r"alpha.*-0\.25"):
        cb.FocalLoss(alpha=-alpha)
    with pytest.raises(TypeError, match=r"gamma to be a number.*Pass gamma\.item\(\)"):
        cb.FocalLoss(gamma=torch.tensor(0.25))  # type: ignore[arg-type]


@over(DEFAULTS)
def test_number_of_classes(case: Case) -> None:
    with pytest.raises(ValueError, match=r"\(2, 0, 4, 5\).*one output for each class"):
        case.function(LOGITS[:, :0], LABELS, **case.settings(C))


FEATURES = torch.randn(N, 4, *SIZE, generator=DRAW)
LABELLED: dict[str, tuple[Any, type[Exception], str]] = {
    name: (CALLS[name].wrong["target"], *CALLS[name].steps[0])
    for name in (
        "divided by ToTensor",
        "whole floats",
        "int8",
        "(N, H, W, 1)",
        "(N, 1, H, W)",
        "(N, H, W, 3) of a grey image",
        "(N, H, W, 3) colours",
        "(N, W, H)",
        "labels as an array",
        "labels as a list of maps",
    )
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_features(name: str) -> None:
    """What takes labels beside features says the same of them, by the names of its own arguments."""
    wrong, error, piece = LABELLED[name]
    calls: dict[str, Callable[[Any], Tensor]] = {
        "labels": lambda labels: functional.class_prototypes(FEATURES, labels, C),
        "target": lambda target: functional.text_alignment_loss(FEATURES, torch.eye(C, 4), target),
    }
    for word, call in calls.items():
        with pytest.raises(error) as caught:
            call(wrong)
        right = apply((piece.replace("target", word),), str(caught.value), {word: wrong}, word)[word]
        assert torch.equal(call(right), call(LABELS))
