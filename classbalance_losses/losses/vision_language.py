r"""HVL's losses on pixel features: consistency under masking, and alignment with the text of the classes.

Nadeem, Anwar, Asad and Bais, "HVL: Semi-Supervised Segmentation leveraging Hierarchical Vision-Language Synergy
with Dynamic Text-Spatial Query Alignment", arXiv 2506.13925, version 2:

.. math::
    L_{\text{mask}} = \frac{1}{|M|} \sum_{i \in M} (1 - \cos(x_i^{\text{mask}}, x_i^{\text{ref}})),
    \qquad
    L_{\text{align}} = \frac{1}{|M|} \sum_{i \in M} -\log
        \frac{e^{\cos(x_i, t_{y_i}) / \tau}}{\sum_k e^{\cos(x_i, t_k) / \tau}},

.. math::
    L_{\text{vl}} = L_{\text{align}} + \lambda_{\text{mask}} L_{\text{mask}}

over a region M of the pixels: in the paper all pixels of one class, drawn at random, which are hidden in the input of
the encoder that learns. No code by the authors could be found; neither τ nor λ is in the paper.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from classbalance_losses._dispatch import backend_for
from classbalance_losses._distributed import ProcessGroup
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate_features import check_feature_map, check_label_range
from classbalance_losses._validate_options import as_label, check_common, check_range
from classbalance_losses._validate_text import check_pair_of_maps, check_region, check_text_width
from classbalance_losses.kernels.call import Logits
from classbalance_losses.kernels.forms.reference import CrossEntropy
from classbalance_losses.kernels.plain import keepable
from classbalance_losses.losses._base import FeatureLoss
from classbalance_losses.ops.counts import kept_labels
from classbalance_losses.ops.geometry import cosine_distance
from classbalance_losses.ops.precision import without_autocast
from classbalance_losses.ops.prototypes import unit_vectors
from classbalance_losses.ops.reduction import global_sum, reduce_loss


@recomputable
def masked_consistency_loss(
    masked: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    *,
    reduction: str = "mean",
    process_group: ProcessGroup = None,
) -> Tensor:
    r"""Make the features of a masked image those that a frozen encoder gives for the whole image (HVL).

    .. math::
        L_{\text{mask}} = \frac{1}{|M|} \sum_{i \in M} (1 - \cos(x_i^{\text{mask}}, x_i^{\text{ref}}))

    It lies in [0, 2], and is 0 where the directions agree; lengths do not matter. With u and v the two at length 1,
    :math:`\partial \ell_i / \partial x_i^{\text{mask}} = -(I - u u^\top)\, v / \lVert x_i^{\text{mask}} \rVert`. The
    gradient goes to ``masked`` alone: the reference is a frozen encoder's.

    Args:
        masked: features of the masked images, shape (N, D, *), floating point.
        reference: features of the whole images, of the same shape; constant.
        mask: the region M, shape (N, *), bool: the pixels that were hidden, in the paper all those of one class;
            ``None`` for all pixels. Features outside are inert, and may be NaN.
        reduction: "mean" over M; "sum"; "none" for the terms, shape (N, *), 0 outside M.
        process_group: ``None`` for this process, ``"world"`` or a group to count M over all its ranks.

    Returns:
        A scalar, or (N, *) with "none", in float32 or, for float64 features, float64. For an empty M it is 0, in
        the graph. A vector of length 0 has no direction: cosine 0, gradient 0.

    Raises:
        ValueError: if a shape or an option does not fit.
        TypeError: if a dtype does not fit.
    """
    check_common(-100, reduction, process_group)
    check_pair_of_maps(masked, reference, mask)
    with without_autocast(masked):
        keep = _region(mask, masked)
        return _reduced(cosine_distance(masked, reference, keep), keep, reduction, process_group)


@recomputable
def text_alignment_loss(
    features: Tensor,
    text: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 0.07,
    ignore_index: int = -100,
    reduction: str = "mean",
    process_group: ProcessGroup = None,
) -> Tensor:
    r"""Classify pixel features by their angles to the text embeddings of the classes (HVL).

    .. math::
        L_{\text{align}} = \frac{1}{|M|} \sum_{i \in M} -\log
            \frac{e^{\cos(x_i, t_{y_i}) / \tau}}{\sum_k e^{\cos(x_i, t_k) / \tau}}

    A cross-entropy whose logits are cosines over τ, so it is never 0: with two opposite embeddings its least value
    is log(1 + exp(−2/τ)), and where all embeddings are equal it is log K. With p its softmax and u = x/‖x‖,
    :math:`\partial \ell / \partial x = (I - u u^\top) \sum_k (p_k - 1[k = y])\, \hat t_k / (\tau \lVert x \rVert)`. The
    gradient goes to the text as well, for prompts that learn; detach it where the text is frozen.

    In the paper t is CLIP's text embedding of the class, M the pixels of one class. Readings: its symbol for t is that
    of the embedding with learnt prompts, so both are possible here, and it does not give τ. The default 0.07 is where
    CLIP's own training starts; it is this library's.

    Args:
        features: x, shape (N, D, *), floating point.
        text: t, shape (K, D) for K >= 2 classes, floating point.
        target: y, class indices, shape (N, *), of any integer dtype; labels, or pseudo-labels.
        mask: the region M, shape (N, *), bool; ``None`` for all pixels.
        temperature: τ > 0.
        ignore_index: label of pixels to leave out of M. Features of pixels left out may be NaN.
        reduction: "mean" over M; "sum"; "none" for the terms, shape (N, *), 0 outside M.
        process_group: ``None`` for this process, ``"world"`` or a group to count M over all its ranks.

    Returns:
        A scalar, or (N, *) with "none", in float32 or, for float64 features, float64. For an empty M it is 0, in
        the graph. A vector of length 0 has no direction: cosine 0 with all, gradient 0.

    Raises:
        ValueError: if a shape or an option does not fit.
        TypeError: if a dtype does not fit.
        IndexError: if a label is neither a class nor ``ignore_index`` (read on the CPU).
    """
    check_range("temperature", temperature, 0, open_low=True)
    check_common(ignore_index, reduction, process_group)
    check_feature_map("features", features, "target", target)
    check_text_width(features, text)
    check_region(mask, features)
    check_label_range("target", target, text.shape[0], ignore_index)
    dtype = torch.promote_types(features.dtype, torch.float32)
    with without_autocast(features):
        keep = (target.long() != ignore_index) & _region(mask, features)
        labels = kept_labels(target, keep, text.shape[0])
        pixels = unit_vectors(torch.where(keep.unsqueeze(1), features, 0).to(dtype), dim=1)
        names = unit_vectors(text.to(dtype)) / temperature
        batch, size = features.shape[0], features.shape[2:]
        cosine = names @ pixels.reshape(batch, features.shape[1], prod(size))
        logits = Logits(cosine.reshape(batch, text.shape[0], *size))
        loss = backend_for(logits, labels).pixel_values(logits, labels, CrossEntropy())
        return _reduced(loss, keep, reduction, process_group)


@recomputable
def vision_language_loss(
    masked: Tensor,
    reference: Tensor,
    text: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    mask_weight: float = 1.0,
    temperature: float = 0.07,
    ignore_index: int = -100,
    reduction: str = "mean",
    process_group: ProcessGroup = None,
) -> Tensor:
    r"""Return HVL's :math:`L_{\text{vl}} = L_{\text{align}} + \lambda_{\text{mask}} L_{\text{mask}}` over the region M.

    What :func:`~classbalance_losses.functional.text_alignment_loss` of the masked images' features and
    :func:`~classbalance_losses.functional.masked_consistency_loss` say holds here. The paper refers to another work
    for λ; the default 1 is this library's. A pixel without a label leaves the alignment, but not the consistency,
    which needs none.

    Args:
        masked: features of the masked images, shape (N, D, *), floating point.
        reference: features of the whole images by the frozen encoder, of the same shape; constant.
        text: t, shape (K, D) for K >= 2 classes.
        target: y, class indices, shape (N, *).
        mask: the region M, shape (N, *), bool; ``None`` for all pixels.
        mask_weight: λ >= 0.
        temperature: τ > 0.
        ignore_index: label of pixels to leave out of the alignment.
        reduction: of both: "mean", "sum" or "none".
        process_group: ``None`` for this process, ``"world"`` or a group to count M over all its ranks.

    Returns:
        A scalar, or (N, *) with "none", in float32 or, for float64 features, float64.

    Raises:
        ValueError: if a shape or an option does not fit.
        TypeError: if a dtype does not fit.
        IndexError: if a label is neither a class nor ``ignore_index`` (read on the CPU).
    """
    check_range("mask_weight", mask_weight, 0)
    align = text_alignment_loss(
        masked,
        text,
        target,
        mask=mask,
        temperature=temperature,
        ignore_index=ignore_index,
        reduction=reduction,
        process_group=process_group,
    )
    consistency = masked_consistency_loss(
        masked, reference, mask, reduction=reduction, process_group=process_group
    )
    return align + mask_weight * consistency


class MaskedConsistencyLoss(FeatureLoss):
    r"""HVL's consistency under masking; see :func:`~classbalance_losses.functional.masked_consistency_loss`.

    Args:
        reduction: "mean" over the region, "sum" or "none".
        process_group: ``None`` for this process, ``"world"`` or a group to count the region over all its ranks.

    Shape:
        - masked, reference: (N, D, \*), reference constant; mask: (N, \*), bool, optional.
        - Output: a scalar, or (N, \*) with "none", in float32 or, for float64 features, float64.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.

    Examples:
        >>> masked, whole = torch.randn(2, 512, 14, 14, requires_grad=True), torch.randn(2, 512, 14, 14)
        >>> MaskedConsistencyLoss()(masked, whole, torch.rand(2, 14, 14) < 0.5).backward()
    """

    _shown = ("reduction",)

    def __init__(self, *, reduction: str = "mean", process_group: ProcessGroup = None) -> None:
        check_common(-100, reduction, process_group)
        super().__init__()
        self.reduction = reduction
        self.process_group = process_group

    def forward(self, masked: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of features (N, D, *) against constant ones, over a region (N, *)."""
        return masked_consistency_loss(
            masked, reference, mask, reduction=self.reduction, process_group=self.joined_group
        )


class TextAlignmentLoss(FeatureLoss):
    r"""HVL's alignment of pixels with text; see :func:`~classbalance_losses.functional.text_alignment_loss`.

    Args:
        temperature: τ > 0; not in the paper.
        ignore_index: label of the pixels to leave out; their features may be NaN.
        reduction: "mean" over the region, "sum" or "none".
        process_group: ``None`` for this process, ``"world"`` or a group to count the region over all its ranks.

    Shape:
        - features: (N, D, \*); text: (K, D); target: (N, \*), class indices; mask: (N, \*), bool, optional.
        - Output: a scalar, or (N, \*) with "none", in float32 or, for float64 features, float64.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.
        IndexError: for a label that is no class (on the CPU).

    Examples:
        >>> features, text = torch.randn(2, 512, 14, 14, requires_grad=True), torch.randn(19, 512)
        >>> TextAlignmentLoss(ignore_index=255)(features, text, torch.randint(0, 19, (2, 14, 14))).backward()
    """

    _shown = ("temperature", "ignore_index", "reduction")

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        ignore_index: int = -100,
        reduction: str = "mean",
        process_group: ProcessGroup = None,
    ) -> None:
        check_range("temperature", temperature, 0, open_low=True)
        check_common(ignore_index, reduction, process_group)
        super().__init__()
        self.temperature = temperature
        self.ignore_index = as_label(ignore_index)
        self.reduction = reduction
        self.process_group = process_group

    def forward(
        self, features: Tensor, text: Tensor, target: Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        """Return the loss of features (N, D, *) and text (K, D) against class indices (N, *)."""
        return text_alignment_loss(
            features,
            text,
            target,
            mask=mask,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=self.joined_group,
        )


class VisionLanguageLoss(FeatureLoss):
    r"""HVL's :math:`L_{\text{vl}}`; see :func:`~classbalance_losses.functional.vision_language_loss`.

    Args:
        mask_weight: λ >= 0 of the consistency; not in the paper.
        temperature: τ > 0 of the alignment; not in the paper.
        ignore_index: label of the pixels to leave out of the alignment.
        reduction: of both: "mean" over the region, "sum" or "none".
        process_group: ``None`` for this process, ``"world"`` or a group to count the region over all its ranks.

    Shape:
        - masked, reference: (N, D, \*), reference constant; text: (K, D); target: (N, \*), class indices;
          mask: (N, \*), bool, optional.
        - Output: a scalar, or (N, \*) with "none", in float32 or, for float64 features, float64.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.
        IndexError: for a label that is no class (on the CPU).

    Examples:
        >>> masked, whole = torch.randn(2, 512, 14, 14, requires_grad=True), torch.randn(2, 512, 14, 14)
        >>> text, labels = torch.randn(19, 512), torch.randint(0, 19, (2, 14, 14))
        >>> VisionLanguageLoss()(masked, whole, text, labels, torch.rand(2, 14, 14) < 0.5).backward()
    """

    _shown = ("mask_weight", "temperature", "ignore_index", "reduction")

    def __init__(
        self,
        *,
        mask_weight: float = 1.0,
        temperature: float = 0.07,
        ignore_index: int = -100,
        reduction: str = "mean",
        process_group: ProcessGroup = None,
    ) -> None:
        check_range("mask_weight", mask_weight, 0)
        check_range("temperature", temperature, 0, open_low=True)
        check_common(ignore_index, reduction, process_group)
        super().__init__()
        self.mask_weight = mask_weight
        self.temperature = temperature
        self.ignore_index = as_label(ignore_index)
        self.reduction = reduction
        self.process_group = process_group

    def forward(
        self, masked: Tensor, reference: Tensor, text: Tensor, target: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return the loss of masked features (N, D, *) against text (K, D), labels (N, *) and constant features."""
        return vision_language_loss(
            masked,
            reference,
            text,
            target,
            mask,
            mask_weight=self.mask_weight,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=self.joined_group,
        )


def _region(mask: Tensor | None, features: Tensor) -> Tensor:
    if mask is not None:
        return keepable(mask)
    size = (features.shape[0], *features.shape[2:])
    return torch.ones(size, dtype=torch.bool, device=features.device)


def _reduced(loss: Tensor, keep: Tensor, reduction: str, process_group: ProcessGroup) -> Tensor:
    count = global_sum(keep, process_group)
    return reduce_loss(loss, reduction=reduction, normalizer=count, process_group=process_group)
