"""Memory between batches: running weights, counts and means, and when they move."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from classbalance_losses._distributed import ProcessGroup, all_reduce_sum, resolve, world_size
from classbalance_losses._validate_features import check_num_classes
from classbalance_losses.kernels.plain import is_exporting
from classbalance_losses.state.saved import Saved, moved


class Entry(NamedTuple):
    """A tensor that is remembered. In the shape, ``None`` stands for the number of classes."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    initial: float = 0.0

    def make(self, num_classes: int, device: torch.device) -> Tensor:
        """Return the tensor as it is before the first batch."""
        shape = [num_classes if size is None else size for size in self.shape]
        return torch.full(shape, self.initial, dtype=self.dtype, device=device)


class Recalled(NamedTuple):
    """What is remembered when a batch comes, by name, and whether the batch is finite (on all ranks)."""

    values: dict[str, Tensor]
    finite: Tensor


class _Size:
    """The number of classes and the device, once a batch has shown them; a copy of a module knows its original's.

    A copy that was made before the first batch then has the entries of its original, in the same places: a loop over
    the values of two state dicts, as averages of weights have it, goes on to pair equals. An original that is gone, or
    in another process, tells nothing: else each of a thousand copies of copies would keep all before it.
    """

    def __init__(self, original: _Size | None = None) -> None:
        self._original = None if original is None else ref(original)
        self.known: tuple[int, torch.device] | None = None

    def find(self) -> tuple[int, torch.device] | None:
        """Return what is known here, or to the original."""
        size: _Size | None = self
        while size is not None and size.known is None:
            size = None if size._original is None else size._original()
        return None if size is None else size.known

    def __getstate__(self) -> dict[str, object]:
        return {"_original": None, "known": self.known}

    def __deepcopy__(self, memo: object) -> _Size:
        copy = _Size(self)
        copy.known = self.known
        return copy


class Memory(Saved):
    """Base of the modules that remember something from batch to batch.

    With ``num_classes`` the memory is in buffers, whose shape never changes. Without, it is made at the first batch,
    and kept out of ``buffers()``: what walks over those (an average of weights, DistributedDataParallel's broadcast)
    would meet one shape here and another there. Saving, loading, copying and moving see it either way.

    It moves in training with gradients enabled: not in evaluation or under ``no_grad``, inside ``torch.func``, while
    ``torch.export`` traces, or by a batch whose loss is not finite; and once a call, however often a checkpoint of
    activations runs it. It is float32 and int64 whatever dtype the module is cast to.
    """

    _entries: dict[str, Entry]

    def _remember(self, num_classes: int | None, **entries: Entry) -> None:
        """Set the memory up; call it once, in the constructor. Any entry named "seen" counts what has been seen."""
        if num_classes is not None:
            check_num_classes(num_classes)
        self._fixed = num_classes
        self._entries = entries
        self._size = _Size()
        self._lent = False  # made for a state dict alone: no batch has been followed
        if num_classes is None:
            self.reset()
            if entries:
                register: Any = self.register_state_dict_post_hook  # torch gives it no types
                register(_save)
            return
        for name, entry in entries.items():
            self.register_buffer(name, entry.make(num_classes, torch.device("cpu")))

    def reset(self) -> None:
        """Forget every batch; without ``num_classes`` the next one may have another number of classes."""
        for name, entry in self._entries.items():
            if self._fixed is None:
                empty = torch.empty(0, dtype=entry.dtype, device="cpu")
                setattr(self, name, entry.make(0, torch.device("cpu")) if None not in entry.shape else empty)
            else:
                self._store(name, torch.full_like(getattr(self, name), entry.initial))
        self._size.known = None
        self._lent = False

    def reset_parameters(self) -> None:
        """Forget every batch, by the name that torch's own modules have, as after ``to_empty``."""
        self.reset()

    def _moves(self) -> bool:
        """Whether the call that is running may change the memory."""
        if not (self.training and torch.is_grad_enabled()):
            return False
        if torch.compiler.is_compiling():
            return not is_exporting()
        return torch._C._functorch.peek_interpreter_stack() is None

    def _recall(self, num_classes: int, finite: Tensor, process_group: ProcessGroup) -> Recalled:
        """Return the memory, on the device of ``finite``, for a batch that is finite or not.

        Raises:
            ValueError: the batch has another number of classes than those before, or there is no memory.
        """
        if not self._entries:
            raise ValueError(
                f"This {type(self).__name__} was built to remember nothing: build another that does."
            )
        known = self._known_classes()
        if self._lent and known != num_classes:
            self.reset()
            known = None
        if known is None:
            values = {name: entry.make(num_classes, finite.device) for name, entry in self._entries.items()}
        elif known == num_classes:
            values = {name: getattr(self, name).to(finite.device, copy=True) for name in self._entries}
        else:
            raise ValueError(
                f"This {type(self).__name__} has followed {known} classes, the batch has {num_classes}. "
                + (
                    "Call its reset() to begin anew."
                    if self._fixed is None
                    else f"Make it with num_classes={num_classes}."
                )
            )
        recalled = Recalled(values, finite)
        if not self._moves():
            return recalled
        if resolve(process_group) is not None:
            return self._agreed(recalled, process_group)
        if known is None and not torch.compiler.is_compiling() and world_size("world") > 1:
            warnings.warn(
                f"Each rank's {type(self).__name__} remembers its own batches. For one memory, give it num_classes=, "
                'and DistributedDataParallel sends that of rank 0 to all; or give the loss process_group="world".',
                stacklevel=2,
            )
        return recalled

    def _agreed(self, mine: Recalled, process_group: ProcessGroup) -> Recalled:
        """Make the ranks' memories one, the mean of those that have seen something: one rank may have loaded a file."""
        counts = [name for name, entry in self._entries.items() if entry.dtype == torch.int64]
        means = [name for name in self._entries if name not in counts]
        has = torch.stack([mine.values[name].any() for name in counts]).any()
        flags = torch.stack([has, ~mine.finite])
        values = {}
        for names in (counts, means):
            if not names:
                continue
            parts = [torch.where(has, mine.values[name], 0).flatten() for name in names]
            total = all_reduce_sum(torch.cat([flags.to(parts[0].dtype), *parts]), process_group)
            (seen, bad), *sums = torch.split(total, [2, *(part.numel() for part in parts)])
            for name, part in zip(names, sums, strict=True):
                own = mine.values[name]
                mean = torch.div(part, seen.clamp(min=1), rounding_mode=None if name in means else "floor")
                values[name] = torch.where(seen > 0, mean.view(own.shape), own)
        return Recalled(values, bad == 0)

    def _keep(self, recalled: Recalled, **values: Tensor) -> None:
        """Store new values, if the call may change the memory, and the batch was finite."""
        if not self._moves():
            return
        if self._known_classes() is None:
            classes = [
                recalled.values[name].shape[-1]
                for name, entry in self._entries.items()
                if None in entry.shape
            ]
            self._size.known = classes[0], recalled.finite.device
        self._lent = False
        for name, value in values.items():
            new = torch.where(recalled.finite, value, recalled.values[name])
            self._store(name, new.to(self._entries[name].dtype))

    def _store(self, name: str, value: Tensor) -> None:
        """Write in place, where what walks over buffers may hold the tensor; else put the new one in its place."""
        old: Tensor = getattr(self, name)
        in_place = old.shape == value.shape and old.device == value.device
        if in_place and (torch.compiler.is_compiling() or not old.is_inference()):
            with torch.no_grad():
                old.copy_(value)
        else:
            setattr(self, name, value)

    def _known_classes(self) -> int | None:
        """The number of classes, as far as the option or a batch has told."""
        for name, entry in self._entries.items():
            if None in entry.shape:
                return getattr(self, name).shape[-1] or None
        return None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the memory along with the module, and leave its dtype alone."""
        kept = {name: getattr(self, name) for name in self._entries}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            setattr(self, name, moved(value, fn))
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = {prefix + name: name for name in self._entries}
        saved = {names[key]: value for key, value in state_dict.items() if key in names}
        others = {key: value for key, value in state_dict.items() if key not in names}
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        # A part of a state dict, parameters alone for example, has no metadata and changes no memory.
        if saved or local_metadata:
            assigns = bool(local_metadata.get("assign_to_params_buffers"))
            self._restore(saved, prefix, error_msgs, assigns=assigns)

    def _restore(
        self, saved: dict[str, Tensor], prefix: str, error_msgs: list[str], *, assigns: bool
    ) -> None:
        """Take the memory out of a checkpoint; one of before the first batch, or of another loss, has none."""
        classes = self._saved_classes(saved)
        known = None if self._lent else self._known_classes()
        if classes is not None and known not in (None, classes):
            entries = [prefix + name for name in saved]
            error_msgs.append(
                f"size mismatch for {', '.join(entries)}: the checkpoint has followed {classes} classes, this "
                f"{type(self).__name__} {known}. To begin anew with {known}, delete these entries from the state dict; "
                f"to go on with {classes}, "
                + (
                    "call its reset() first."
                    if self._fixed is None
                    else f"make it with num_classes={classes}."
                )
            )
            return
        self.reset()
        if classes is None:
            return
        stays = self._fixed is not None and not assigns
        for name, value in self._completed(saved, classes, stays=stays).items():
            self._store(name, value)
            self._size.known = classes, value.device

    def _saved_classes(self, saved: dict[str, Tensor]) -> int | None:
        """The number of classes of a checkpoint; ``None`` where its entries are not this module's, or empty."""
        for name, entry in self._entries.items():
            if None in entry.shape:
                if (
                    name not in saved
                    or [*saved[name].shape[:-1]] != [*entry.shape[:-1]]
                    or not saved[name].ndim
                ):
                    return None
                return saved[name].shape[-1] or None
        return None

    def _completed(self, saved: dict[str, Tensor], num_classes: int, *, stays: bool) -> dict[str, Tensor]:
        """Bring a checkpoint into today's form, on its device or, if that ``stays``, on the module's.

        Formerly NaN told what had not been seen, and nothing was counted.
        """
        values = {}
        for name, entry in self._entries.items():
            device = getattr(self, name).device if stays else next(iter(saved.values())).device
            initial = entry.make(num_classes, device)
            value = saved.get(name)
            if value is None and name == "seen":
                value = self._seen_before(saved)
            value = initial if value is None or value.shape != initial.shape else value.detach().to(device)
            values[name] = torch.where(value.isfinite(), value, initial).to(entry.dtype)
        return values

    def _seen_before(self, saved: dict[str, Tensor]) -> Tensor:
        """What a former checkpoint, without a count, has seen, in the shape of "seen"."""
        first = next(saved[name] for name, entry in self._entries.items() if None in entry.shape)
        seen = first.isfinite() & (first != 0)
        return seen if self._entries["seen"].shape else seen.any()


def _save(module: Memory, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    """Put memory that is in no buffer into a state dict, once there is some, here or in the module's original."""
    if module._known_classes() is None:
        size = module._size.find()
        if size is None:
            return
        for name, entry in module._entries.items():
            setattr(module, name, entry.make(*size))
        module._lent = True
    state_dict.update({prefix + name: getattr(module, name).detach() for name in module._entries})
