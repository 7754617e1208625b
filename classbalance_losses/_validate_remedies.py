"""What to do about wrong input, told from its type, its shape and, where they may be read, its values.

Called once a check has failed, so that a look at every value costs nothing that matters. A remedy is an expression in
the names of the arguments that works as it stands; where the input has two meanings, both are named.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence, Set
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

# Names under which models and data sets keep what the losses take.
_ENTRIES = {
    "input": ("out", "logits", "output", "pred", "prediction"),
    "target": ("labels", "label", "target", "targets", "mask", "masks"),
}


def may_look(tensor: Tensor) -> bool:
    """Whether its values may be read now that an error is on its way: a synchronisation does no harm."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type != "meta"
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def of_type(name: str, value: object, axes: int | None) -> str:
    """Say how to get at the tensor of ``axes`` axes that is in ``value``, or to make one of it."""
    if isinstance(value, Mapping):
        return _of_entries(name, value, lambda key: f"{name}[{key!r}]")
    fields = _fields(value)
    if fields:
        return _of_entries(name, fields, lambda key: f"{name}.{key}")
    if isinstance(value, (list, tuple)):
        return _of_sequence(name, value, axes)
    if isinstance(value, Real):
        return f"Pass torch.tensor({name})."
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        as_it_is = min(getattr(value, "strides", (-1,)), default=0) >= 0  # torch takes no negative strides
        return f"Pass torch.as_tensor({name if as_it_is else f'numpy.array({name})'})."
    return "Pass a torch.Tensor."


def _fields(value: object) -> dict[str, object]:
    """Return the tensors among the attributes of an object such as a model's output."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        names: Sequence[str] = value._fields
    elif dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    else:
        names = sum(_ENTRIES.values(), ())
    found = {key: getattr(value, key, None) for key in names}
    return {key: entry for key, entry in found.items() if isinstance(entry, Tensor)}


def _of_entries(name: str, entries: Mapping[Any, object], access: Callable[[Any], str]) -> str:
    tensors = [key for key, entry in entries.items() if isinstance(entry, Tensor)]
    known = [key for key in _ENTRIES.get(name, sum(_ENTRIES.values(), ())) if key in tensors]
    chosen = [*known, *tensors][:1]
    if not chosen or (len(tensors) > 1 and not known):
        return f"It has the entries {', '.join(map(repr, entries))}: pass the tensor that you mean."
    others = [access(key) for key in tensors if key != chosen[0]] if name == "input" else []
    more = f", and add the loss of {' and '.join(others)} if it is a head of its own" if others else ""
    return f"Pass {access(chosen[0])}{more}."


def _of_sequence(name: str, value: Sequence[Any], axes: int | None) -> str:
    if not value or not all(isinstance(entry, Tensor) for entry in value):
        arrays = bool(value) and all(hasattr(entry, "__array__") for entry in value)
        return f"Pass torch.as_tensor(numpy.stack({name}))." if arrays else f"Pass torch.tensor({name})."
    if axes is not None and value[0].ndim == axes - 1:
        if len({tuple(entry.shape) for entry in value}) > 1:
            return (
                "Its entries differ in shape: call the loss for each, with a batch axis, entry.unsqueeze(0)."
            )
        return f"Pass torch.stack({name})."
    if name == "input":
        return "Pass input[0] for the first head alone, or add up: sum(loss(head, target) for head in input)."
    return f"Pass {name}[0], or call the loss for each entry."


def of_swapped(input: Tensor, target: Tensor) -> str:
    """Say that labels came first and logits second, if it looks so."""
    if not target.is_floating_point() or target.ndim < 2:
        return ""
    map_of_labels = tuple(input.shape) == (target.shape[0], *target.shape[2:])
    with_an_axis = (
        input.ndim == target.ndim > 2 and 1 in (input.shape[1], input.shape[-1]) and target.shape[1] > 1
    )
    if map_of_labels or (with_an_axis and not input.is_floating_point()):
        return "The arguments look swapped, logits come first: input, target = target, input."
    return ""


def of_logits(input: Tensor) -> str:
    """Say how to get logits out of a tensor of another dtype."""
    if input.is_complex():
        return "Logits are real: pass input.real or input.abs(), whichever the scores are."
    return "Pass input.float(). Predicted classes, after argmax, are no logits."


def of_one_class(num_classes: int) -> str:
    """Say what to do with a single logit a pixel, or with none."""
    if num_classes == 0:
        return "The class axis is empty: give the last layer one output for each class."
    return (
        "A softmax over one class is 1 whatever the logit. For one logit a pixel, whose sigmoid is the probability of "
        'label 1, pass task="binary".'
    )


def of_pixel_weight_shape(pixel_weight: Tensor, target: Tensor) -> str:
    """Say how to bring weights to the target's shape (N, *)."""
    shape, ones = tuple(pixel_weight.shape), ", ".join(["1"] * (target.ndim - 1))
    if target.ndim > 1 and shape and shape[0] == target.shape[0] and pixel_weight.numel() == shape[0]:
        return f"For a weight of each image pass pixel_weight.reshape(-1, {ones}).expand(target.shape)."
    if pixel_weight.ndim == target.ndim + 1 and 1 in (shape[1], shape[-1]):
        return f"Pass pixel_weight.squeeze({1 if shape[1] == 1 else -1})."
    if target.ndim > 1 and shape == (target.shape[0], *target.shape[2:]):
        return "For one weight of all labels of a pixel pass pixel_weight.unsqueeze(1).expand(target.shape)."
    size = tuple(target.shape[1:])
    if _expands(shape, tuple(target.shape)):
        return "Pass pixel_weight.expand(target.shape)."
    if (
        pixel_weight.ndim == target.ndim
        and shape[0] == target.shape[0]
        and all(shape)
        and 1 <= len(size) <= 3
    ):
        resized = f"torch.nn.functional.interpolate(pixel_weight[:, None], size={size})[:, 0]"
        return f"For a map of another size pass {resized}."
    return "One number for each pixel; weights of classes are the weight= of WeightedCrossEntropyLoss."


def of_map_shape(name: str, value: Tensor, to: tuple[int, ...]) -> str:
    """Say how to bring a mask, or weights, to a shape (N, *)."""
    shape, size = tuple(value.shape), to[1:]
    if value.ndim == len(to) + 1 and 1 in (shape[1], shape[-1]):
        return f"Pass {name}.squeeze({1 if shape[1] == 1 else -1})."
    if size and shape[:1] == to[:1] and value.numel() == to[0]:
        return f"For one of each image pass {name}.reshape(-1, {', '.join('1' * len(size))}).expand({to})."
    if _expands(shape, to):
        return f"Pass {name}.expand({to})."
    if value.ndim == len(to) and shape[0] == to[0] and all(shape) and 1 <= len(size) <= 3:
        number, again = (".float()", ".bool()") if value.dtype == torch.bool else ("", "")
        resized = f"torch.nn.functional.interpolate({name}[:, None]{number}, size={size}, mode='nearest')[:, 0]{again}"
        return f"Bring it to that size: {resized}."
    return "It has one entry for each pixel."


def _expands(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    pairs = zip(shape[::-1], to[::-1], strict=False)
    return len(shape) <= len(to) and all(size in (1, other) for size, other in pairs)


def of_ignore_index(value: object, *, several: bool) -> str:
    """Say what to pass where no label, or more than one, is to be ignored; ``several`` says that there may be more."""
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    many = isinstance(value, (Sequence, Set)) and not isinstance(value, (str, bytes))
    if value is None or (many and not value):
        return "To ignore nothing pass ignore_index=-100, the default: no label is that."
    if many and all(isinstance(label, Integral) for label in cast("Sequence[object]", value)):
        labels = sorted(int(label) for label in cast("Sequence[int]", value))
        if several:
            return f"For several labels pass a tuple: ignore_index={tuple(labels)}."
        return f"One label is left out here: pass ignore_index={labels[-1]}, and labels that have it for the others."
    if isinstance(value, (float, str)) and re.fullmatch(r"-?\d+(\.0*)?", str(value)):
        return f"Pass ignore_index={int(float(value))}."
    return "Pass the label to leave out, such as ignore_index=255."


def of_class_numbers(name: str, value: object) -> str:
    """Say how to make a vector of one number a class."""
    if isinstance(value, Mapping):
        if value and all(isinstance(key, int) and key >= 0 for key in value):
            missing = "" if set(value) == set(range(len(value))) else ", 1.0"
            entry = f"{name}.get(c{missing})" if missing else f"{name}[c]"
            return (
                f"Pass its numbers in the order of the classes: [{entry} for c in range({max(value) + 1})]."
            )
        return f"Pass its numbers in the order of the classes, such as list({name}.values())."
    if isinstance(value, type) or hasattr(value, "pixel_counts"):
        return f"Pass {_of_object(name, value)}."
    if isinstance(value, str):
        return (
            "For weights from the classes' frequency, as scikit-learn's \"balanced\", pass PixelFrequency(), which "
            "counts each batch, or functional.pixel_frequency_weights(counts)."
        )
    if isinstance(value, (int, float)):
        return f"For two classes, of which the second has that weight, pass [1.0, float({name})]."
    nested = isinstance(value, Sequence) and value and isinstance(value[0], (list, tuple))
    ready = isinstance(value, (Sequence, Set)) or not hasattr(value, "__iter__")
    return f"Pass {f'torch.tensor({name})' if nested else 'one number for each class' if ready else f'list({name})'}."


def _of_object(name: str, value: Any) -> str:
    """Say what to pass in the place of a class, or of statistics."""
    if isinstance(value, type):
        return f"an instance: {value.__name__}()"
    is_weight = "weight" in name or name == "alpha"
    return f'{name}.weights("pixel_frequency")' if is_weight else f"{name}.pixel_counts"


def of_class_vector_shape(name: str, vector: Tensor) -> str:
    """Say how to get one number a class out of a tensor of another shape."""
    if vector.ndim == 0:
        return of_class_numbers(name, 1.0)
    if vector.ndim == 1 and vector.numel() == 1:
        one = f"{name}[0]" if name == "alpha" else f"[1.0, float({name}[0])]"
        return f"For {'all classes' if name == 'alpha' else 'the second of two classes'} pass {one}."
    if vector.ndim > 1 and vector.numel() == max(vector.shape):
        return f"Pass {name}.flatten()."
    return "Pass one number for each class, 0 to leave one out."
