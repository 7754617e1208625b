r"""Overlap losses: Tversky, and Dice and Jaccard as its cases, from sums of probabilities over each class.

.. math::
    T_c = \frac{I_c + s}{I_c + \alpha (P_c - I_c) + \beta (n_c - I_c) + s}, \qquad
    L = \frac{1}{K} \sum_c (1 - T_c)^\gamma

Salehi et al., "Tversky loss function for image segmentation using 3D fully convolutional deep networks", MLMI 2017.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from typing_extensions import Unpack

from classbalance_losses._distributed import all_reduce_counts, all_reduce_sum, joined_value, world_size
from classbalance_losses._options import DEFAULTS, Common, shows
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate_classes import Numbers, as_class_vector, class_vector_of_call
from classbalance_losses._validate_options import check_choice, check_flag, check_range
from classbalance_losses.kernels import tversky
from classbalance_losses.kernels.tversky import Index, total_missed
from classbalance_losses.losses._base import VectorLoss
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.soft import batch_for
from classbalance_losses.ops.sums import ImageSums, Needs, over_rows

_POWERS = {"inverse": 1, "inverse_square": 2}


class Tversky(NamedTuple):
    """How the loss is made of the sums."""

    alpha: float = 0.5
    beta: float = 0.5
    gamma: float = 1.0
    smooth: float = 0.0
    per_image: bool = False
    classes: str = "present"
    include_background: bool = True
    generalized: str | None = None

    def check(self) -> None:
        """Check the options."""
        for name in ("alpha", "beta", "smooth"):
            check_range(name, getattr(self, name), 0)
        check_range("alpha + beta", self.alpha + self.beta, 0, open_low=True)
        check_range("gamma", self.gamma, 0, open_low=True)
        check_choice("classes", self.classes, ("present", "all"))
        check_flag("per_image", self.per_image)
        check_flag("include_background", self.include_background)
        if self.generalized is not None:
            check_choice("generalized", self.generalized, tuple(_POWERS))

    def loss(self, batch: Batch, class_weight: Numbers | None) -> Tensor:
        """Return the loss of a batch."""
        self.check()
        sums, index = self._sums(batch), Index(self.alpha, self.beta, self.gamma, self.smooth)
        weight, mean = self._weight(class_weight, batch, sums.pixels), batch.reduction == "mean"
        if self.generalized is None and batch.reduction != "none":
            mean_missed = getattr(batch.backend, "mean_missed", tversky.mean_missed)
            rows = mean_missed(sums.probability, sums.own, sums.number, weight, index, mean=mean)
            return self._over_rows(rows, weight, batch)
        own, union = sums.own, index.union(sums.probability, sums.own, sums.number)
        if self.generalized is not None:
            own, union = self._ratio(sums.number, own, union)
            weight = torch.ones_like(own)
        missed = index.missed(own, union)
        if batch.reduction != "none":
            return self._over_rows(total_missed(missed, weight, mean=mean), weight, batch)
        weighted = weight * missed
        return weighted if self.per_image else weighted.squeeze(0)

    def _sums(self, batch: Batch) -> ImageSums:
        """Return the sums of each image, or of the batch on all ranks, over the classes that may count."""
        sums = batch.image_sums() if self.per_image else _over_ranks(batch.sums_of_all(), batch)
        if self.include_background or batch.logits.single:
            return sums
        return ImageSums(*(of[:, 1:] for of in sums))

    def _ratio(self, number: Tensor, *sums: Tensor) -> Iterator[Tensor]:
        """Return sums (R, C) as one of each row, (R, 1), each class by its share."""
        assert self.generalized is not None
        is_there = number > 0
        count = torch.where(is_there, number, 1).to(sums[0].dtype)
        share = is_there * count ** -_POWERS[self.generalized]
        return ((share * of).sum(1, keepdim=True) for of in sums)

    def _weight(self, class_weight: Numbers | None, batch: Batch, pixels: Tensor) -> Tensor:
        """Return w (R, C), 0 for what is left out."""
        part = pixels > 0 if self.classes == "present" else torch.ones_like(pixels, dtype=torch.bool)
        if class_weight is None:
            return part.to(batch.dtype)
        classes = (batch.groups if batch.logits.single else batch.labels.num_classes,)
        vector = class_vector_of_call("class_weight", class_weight, batch.logits.input, classes)
        return torch.where(part, vector.to(batch.dtype)[-part.shape[1] :], 0)

    def _over_rows(self, losses: Tensor, weight: Tensor, batch: Batch) -> Tensor:
        """Return the loss from that of the batch, or of each image (R,)."""
        total = over_rows(losses)
        if not self.per_image:
            return _of_joined_sums(total, batch)
        if batch.reduction == "mean":
            counted = (weight.sum(1) > 0).sum()
            total = total / all_reduce_sum(counted, batch.process_group).clamp(min=1)
        return joined_value(total, batch.process_group)


class Options(Common, total=False):
    """The options of overlap losses; their defaults are those of `Tversky`."""

    alpha: float
    beta: float
    gamma: float
    smooth: float
    per_image: bool
    classes: str
    include_background: bool
    generalized: str | None
    class_weight: Numbers | None


_DEFAULTS = {**Tversky._field_defaults, "class_weight": None, **DEFAULTS}


def _apart(options: Options) -> tuple[Tversky, Numbers | None, Common]:
    """Return the settings, w, and what is left: the common options."""
    left: dict[str, Any] = {**options}
    settings = Tversky(**{name: left.pop(name) for name in Tversky._fields if name in left})
    return settings, left.pop("class_weight", None), cast("Common", left)


@shows(Options, _DEFAULTS)
@recomputable
def tversky_loss(
    input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None, **options: Unpack[Options]
) -> Tensor:
    """Functional form of :class:`classbalance_losses.TverskyLoss`, which describes the arguments."""
    settings, class_weight, common = _apart(options)
    learned, needs = (class_weight,), Needs(overlap=True)
    batch = batch_for(input, target, pixel_weight, common, learned=learned, needs=needs)
    return settings.loss(batch, class_weight)


@shows(Options, _DEFAULTS, "alpha", "beta")
def dice_loss(
    input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None, **options: Unpack[Options]
) -> Tensor:
    """Functional form of :class:`classbalance_losses.DiceLoss`, which describes the arguments."""
    return tversky_loss(input, target, pixel_weight=pixel_weight, **_with(0.5, options))


@shows(Options, _DEFAULTS, "alpha", "beta")
def jaccard_loss(
    input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None, **options: Unpack[Options]
) -> Tensor:
    """Functional form of :class:`classbalance_losses.JaccardLoss`, which describes the arguments."""
    return tversky_loss(input, target, pixel_weight=pixel_weight, **_with(1.0, options))


def _with(share: float, options: Options) -> Options:
    """Return the options of a loss that is Tversky's with α = β = ``share``.

    Raises:
        TypeError: if one of those is given.
    """
    for name in ("alpha", "beta"):
        if name in options:
            raise TypeError(f"got an unexpected keyword argument {name!r}; TverskyLoss has it.")
    return {**options, "alpha": share, "beta": share}


class TverskyLoss(VectorLoss):
    r"""Tversky loss: one minus the overlap of probabilities and labels, class by class (Salehi et al. 2017).

    .. math::
        T_c = \frac{I_c + s}{I_c + \alpha (P_c - I_c) + \beta (n_c - I_c) + s}, \qquad
        L = \frac{\sum_c w_c (1 - T_c)^\gamma}{\sum_c w_c}

    :math:`I_c = \sum_{y_i = c} q_i p_{ic}`, :math:`P_c = \sum_i q_i p_{ic}` and :math:`n_c = \sum_{y_i = c} q_i` are
    sums over the valid pixels of the batch, on all ranks, or of each image. α weighs false positives and β false
    negatives: α = β = ½ is Dice, α = β = 1 Jaccard, β > α lifts recall.

    γ is the exponent itself; the focal Tversky loss (Abraham and Khan, ISBI 2019) writes 1/γ for it, so that its
    γ = 4/3 is 0.75 here. ``generalized`` puts weights inside the ratio of sums (Sudre et al., DLMIA 2017),

    .. math::
        1 - T, \qquad T = \frac{\sum_c v_c I_c + s}{\sum_c v_c (I_c + \alpha (P_c - I_c) + \beta (n_c - I_c)) + s},

    with :math:`v_c = 1 / n_c` or :math:`1 / n_c^2`, and 0 for an absent class.

    A class without a pixel has no overlap to speak of: "present" leaves it out of the mean, "all" counts it, with a
    loss of 1 as soon as there is any probability and s = 0. Where nothing is left the loss is 0, in the graph: an empty
    image, everything ignored. An overlap alone says little about single pixels: add a cross-entropy,
    ``DyCELoss() + DiceLoss()``, which takes one pass over the logits.

    Args:
        alpha: α ≥ 0, of false positives.
        beta: β ≥ 0, of false negatives; not both 0.
        gamma: γ > 0.
        smooth: s ≥ 0, in pixels. Of MONAI's Dice, 2I + smooth_nr over P + n + smooth_dr, it is half.
        per_image: the overlap of each image, then the mean over images, and not that of the batch.
        classes: "present": the mean is over the classes that the batch, or the image, has; "all".
        include_background: whether class 0 of a softmax counts. Of labels, binary or many, it is always the overlap of
            what is present.
        class_weight: w, of the mean over classes, (C,): a tensor, array or sequence; or ``None`` for ones.
        generalized: ``None``, "inverse" or "inverse_square".
        task: "multiclass" for a softmax, "binary" for one logit a pixel, "multilabel" for a sigmoid each.
        upsample: "linear" to interpolate the logits to the target's size; ``None`` where they have it.
        align_corners: of the interpolation, as in ``torch.nn.functional.interpolate``.
        ignore_index: the label of pixels to leave out, or several; their logits may be NaN.
        reduction: "mean" as above; "sum" of the classes' losses, and of images; "none": the losses of classes, (C,), or
            (N, C) with ``per_image``, 0 where they are left out.
        process_group: ``None`` for this process's sums, "world" or a group for those of all its ranks.

    Shape:
        - input: logits (N, C, \*), of any floating-point dtype; the loss is float32, or float64 for float64.
        - target: class indices (N, \*) of uint8, int16, int32 or int64, or shares (N, C, \*), floats in [0, 1]; of
          labels 0 and 1, any integer dtype or bool, or shares: (N, L, \*), for one (N, \*) too.
        - pixel_weight: q, (N, \*), of labels in the target's shape, non-negative.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.
        IndexError: for a target that is no class (on the CPU).
    """

    _shown: tuple[str, ...] = Tversky._fields
    _vector = "class_weight"
    class_weight: Tensor | None

    @shows(Options, _DEFAULTS)
    def __init__(self, **options: Unpack[Options]) -> None:
        settings, class_weight, common = _apart(options)
        settings.check()
        super().__init__(**common)
        for name, value in settings._asdict().items():
            setattr(self, name, value)
        setattr(self, self._vector, class_weight)  # a sequence becomes a tensor

    def _checked(self, value: Any) -> Any:
        if value is None:
            return None
        vector = as_class_vector("class_weight", value)
        return value if isinstance(value, Tensor) and value.requires_grad else vector

    @property
    def needs(self) -> Needs:
        """Sums of probabilities."""
        return Needs(overlap=True)

    @property
    def learned(self) -> tuple[object, ...]:
        """w, if it is given."""
        return (self.class_weight,)

    def of(self, batch: Batch) -> Tensor:
        """Return the loss of a batch that was checked."""
        return self._settings().loss(batch, self.class_weight)

    def _settings(self) -> Tversky:
        return Tversky(*(getattr(self, name) for name in Tversky._fields))

    @recomputable
    def forward(self, input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits (N, C, *) against labels (N, *)."""
        learned, needs = self.learned, self.needs
        return self.of(batch_for(input, target, pixel_weight, self.common, learned=learned, needs=needs))


class DiceLoss(TverskyLoss):
    r"""Dice loss, :math:`1 - \frac{2 I_c}{P_c + n_c}` class by class: Tversky with α = β = ½ (Milletari et al. 2016).

    Its arguments are those of :class:`TverskyLoss` but for α and β. ``generalized="inverse_square"`` is the generalised
    Dice loss of Sudre et al., DLMIA 2017.

    Shape:
        as there.

    Raises:
        ValueError, TypeError, IndexError: as there.

    Examples:
        >>> criterion = DyCELoss(ignore_index=255) + 0.5 * DiceLoss(ignore_index=255)
    """

    _shown = TverskyLoss._shown[2:]

    @shows(Options, _DEFAULTS, "alpha", "beta")
    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(**_with(0.5, options))


class JaccardLoss(TverskyLoss):
    r"""Jaccard loss, :math:`1 - \frac{I_c}{P_c + n_c - I_c}` class by class: Tversky with α = β = 1.

    Its arguments are those of :class:`TverskyLoss` but for α and β. Source: Rahman and Wang, ISVC 2016.

    Shape:
        as there.

    Raises:
        ValueError, TypeError, IndexError: as there.
    """

    _shown = TverskyLoss._shown[2:]

    @shows(Options, _DEFAULTS, "alpha", "beta")
    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(**_with(1.0, options))


def _over_ranks(sums: ImageSums, batch: Batch) -> ImageSums:
    """Return the sums of all ranks, with the gradient of this rank's."""
    if world_size(batch.process_group) == 1:
        return sums
    group, dtype = batch.process_group, batch.dtype
    return ImageSums(*(own + (all_reduce_counts(own, dtype, group) - own).detach() for own in sums))


def _of_joined_sums(loss: Tensor, batch: Batch) -> Tensor:
    """Return a loss of sums over all ranks, its gradient times ranks: DistributedDataParallel averages it."""
    ranks = world_size(batch.process_group)
    return loss if ranks == 1 else ranks * loss - (ranks - 1) * loss.detach()
