r"""HVL's losses on text embeddings and queries: diversity, topology and anchors.

Nadeem, Anwar, Asad and Bais, "HVL: Semi-Supervised Segmentation leveraging Hierarchical Vision-Language Synergy
with Dynamic Text-Spatial Query Alignment", arXiv 2506.13925, version 2:

.. math::
    L_{\text{div}} = \sum_k \sum_{l \ne l'} \cos(q_k^l, q_k^{l'})^2,
    \qquad
    L_{\text{topo}} = \sum_{i,j} (t_i \cdot t_j - t_i^C \cdot t_j^C)^2,

.. math::
    L_{\text{anchor}} = \sum_k \Bigl[ \lVert \Phi(t_k) - t_k^C \rVert_2
        - \sum_{j \ne k} \log\bigl(1 + \lVert \Phi(t_k) - \Phi(t_j) \rVert_2\bigr) \Bigr],
    \qquad
    L_{\text{prompt}} = L_{\text{topo}} + L_{\text{anchor}}

They see no pixels. Φ is a perceptron of two layers in the paper. No code by the authors could be found, and the paper
gives no weights for these terms: what it leaves open is settled in the docstrings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from classbalance_losses._validate_options import check_choice, check_flag
from classbalance_losses._validate_text import check_projected, check_queries, check_same_classes
from classbalance_losses.losses._base import FeatureLoss
from classbalance_losses.ops.geometry import cosines, distances, lengths, off_diagonal
from classbalance_losses.ops.precision import without_autocast
from classbalance_losses.ops.prototypes import unit_vectors

_REDUCTIONS = ("sum", "mean")


def query_diversity_loss(queries: Tensor, *, pairs: str = "ordered", reduction: str = "sum") -> Tensor:
    r"""Keep the queries that one class has at several levels from saying the same (HVL).

    .. math::
        L_{\text{div}} = \sum_k \sum_{l \ne l'} \cos(q_k^l, q_k^{l'})^2

    It lies in [0, K·L·(L−1)]: 0 where the queries of each class are orthogonal, and for L = 1. Lengths do not
    matter, nor signs. With u = q/‖q‖ the gradient at one query is

    .. math::
        \frac{\partial L}{\partial q_k^l} = \frac{4}{\lVert q_k^l \rVert}
            \sum_{l' \ne l} \cos(q_k^l, q_k^{l'}) \, (I - u u^\top)\, u',
        \qquad u = u_k^l,\; u' = u_k^{l'}

    Readings: the sum over the classes k is not printed, and a squared norm of the scalar cos is read as its
    square. The condition l ≠ l' takes each pair twice; ``pairs="unordered"`` takes it once.

    Args:
        queries: shape (K, L, D), or (N, K, L, D) where they depend on the image: then the mean over the N images.
        pairs: "ordered" counts (l, l') and (l', l), "unordered" one of them. Without effect on the mean.
        reduction: "sum" as above; "mean" over classes and pairs, in [0, 1].

    Returns:
        A scalar in float32 or, for float64 queries, float64; 0 in the graph where there is no pair. A query of
        length 0 has no direction: cosine 0, gradient 0.

    Raises:
        ValueError: if the shape or an option does not fit.
        TypeError: if the dtype is not floating point.
    """
    check_choice("pairs", pairs, ("ordered", "unordered"))
    check_choice("reduction", reduction, _REDUCTIONS)
    check_queries(queries)
    with without_autocast(queries):
        classes, levels = queries.shape[-3:-1]
        total = off_diagonal(cosines(_wide(queries)).square()).sum()
        images = queries.shape[0] if queries.ndim == 4 else 1
        terms = classes * levels * (levels - 1) if reduction == "mean" else 1
        factor = 0.5 if pairs == "unordered" and reduction == "sum" else 1.0
        return total * (factor / max(1, images * terms))


def topology_loss(text: Tensor, prototypes: Tensor, *, reduction: str = "sum") -> Tensor:
    r"""Keep the angles between learnt class embeddings as they are between the pretrained ones (HVL).

    .. math::
        L_{\text{topo}} = \sum_{i,j} (t_i \cdot t_j - t_i^C \cdot t_j^C)^2 = \lVert G - G^C \rVert_F^2

    with all embeddings scaled to length 1 inside, G and :math:`G^C` their cosines. It is 0 exactly where all
    angles agree: rotating either set changes nothing. The diagonal adds nothing, and each pair counts twice, as
    printed. At unit length, :math:`\partial L / \partial t_i = 4 \sum_j (G - G^C)_{ij}\, t_j`, of which the part
    across :math:`t_i` is passed on.

    Args:
        text: t, the learnt embeddings, shape (K, D), floating point.
        prototypes: :math:`t^C`, the frozen ones, shape (K, D'); constant. Only angles are compared, so the
            widths may differ.
        reduction: "sum" as above; "mean" over the K·(K−1) ordered pairs of classes.

    Returns:
        A scalar in float32 or, for float64 text, float64; 0 in the graph for K = 1. An embedding of length 0 has
        no direction: cosine 0 with all others.

    Raises:
        ValueError: if a shape or the option does not fit.
        TypeError: if a dtype is not floating point.
    """
    check_choice("reduction", reduction, _REDUCTIONS)
    check_same_classes(text, prototypes)
    with without_autocast(text):
        own = _wide(text)
        gap = cosines(own) - cosines(prototypes.detach().to(own.dtype))
        total = off_diagonal(gap.square()).sum()
        classes = text.shape[0]
        return total / max(1, classes * (classes - 1)) if reduction == "mean" else total


def anchor_loss(
    projected: Tensor, prototypes: Tensor, *, normalize: bool = True, reduction: str = "sum"
) -> Tensor:
    r"""Tie each projected class embedding to its pretrained prototype, and keep the classes apart (HVL).

    .. math::
        L_{\text{anchor}} = \sum_k \Bigl[ \lVert \Phi(t_k) - t_k^C \rVert_2
            - \sum_{j \ne k} \log\bigl(1 + \lVert \Phi(t_k) - \Phi(t_j) \rVert_2\bigr) \Bigr]

    Bounded from below, but negative where the classes lie well apart: its value is no measure of success, and
    the minimum is not at the prototypes. The gradient is a unit vector for each norm, the repulsive ones scaled
    by 1/(1+d), and twice, as each pair stands under both of its classes.

    Whether Φ's output is normalised is not said. If it is not, the repulsion drives the embeddings outwards until
    ‖Φ‖ is about K − 1, far from prototypes of length 1; so the default scales both to length 1.

    Args:
        projected: Φ(t), shape (K, D), floating point. Φ is the caller's: in the paper a perceptron of two layers,
            whose widths it does not give, on the embeddings t at length 1.
        prototypes: :math:`t^C`, shape (K, D); constant.
        normalize: scale projected and prototypes to length 1 first. False takes both as they are.
        reduction: "sum" as above; "mean" divides it by K.

    Returns:
        A scalar in float32 or, for float64 projected, float64. For K = 1 it is the distance to the prototype. The
        norms are not smooth at 0; the gradient there is 0.

    Raises:
        ValueError: if a shape or an option does not fit.
        TypeError: if a dtype is not floating point.
    """
    check_choice("reduction", reduction, _REDUCTIONS)
    check_flag("normalize", normalize)
    check_projected(projected, prototypes)
    with without_autocast(projected):
        own = _wide(projected)
        anchors = prototypes.detach().to(own.dtype)
        if normalize:
            own, anchors = unit_vectors(own), unit_vectors(anchors)
        total = lengths(own - anchors).sum() - 2 * distances(own).log1p().sum()
        return total / max(1, own.shape[0]) if reduction == "mean" else total


def prompt_loss(
    text: Tensor, projected: Tensor, prototypes: Tensor, *, normalize: bool = True, reduction: str = "sum"
) -> Tensor:
    r"""Return HVL's :math:`L_{\text{prompt}} = L_{\text{topo}} + L_{\text{anchor}}`, in equal parts.

    What :func:`~classbalance_losses.functional.topology_loss` and
    :func:`~classbalance_losses.functional.anchor_loss` say holds here. The two sums have different ranges, and the
    paper gives no weight between them: for another one, add the two functions.

    Args:
        text: t, the learnt embeddings, shape (K, D).
        projected: Φ(t), shape (K, D').
        prototypes: :math:`t^C`, shape (K, D'); constant.
        normalize: of the anchors: scale projected and prototypes to length 1 first.
        reduction: of both: "sum" or "mean".

    Returns:
        A scalar in float32, or float64 where an argument is. The gradient goes to text and projected.

    Raises:
        ValueError: if a shape or an option does not fit.
        TypeError: if a dtype is not floating point.
    """
    anchors = anchor_loss(projected, prototypes, normalize=normalize, reduction=reduction)
    return topology_loss(text, prototypes, reduction=reduction) + anchors


class QueryDiversityLoss(FeatureLoss):
    r"""HVL's diversity of the queries of a class; see :func:`~classbalance_losses.functional.query_diversity_loss`.

    Args:
        pairs: "ordered" (as printed) counts each pair of levels twice, "unordered" once.
        reduction: "sum" (as printed) or "mean" over classes and pairs.

    Shape:
        - queries: (K, L, D) for K classes with L queries each, or (N, K, L, D).
        - Output: a scalar, in float32 or, for float64 queries, float64.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.

    Examples:
        >>> queries = torch.randn(19, 3, 256, requires_grad=True)
        >>> QueryDiversityLoss()(queries).backward()
    """

    _shown = ("pairs", "reduction")

    def __init__(self, *, pairs: str = "ordered", reduction: str = "sum") -> None:
        check_choice("pairs", pairs, ("ordered", "unordered"))
        check_choice("reduction", reduction, _REDUCTIONS)
        super().__init__()
        self.pairs = pairs
        self.reduction = reduction

    def forward(self, queries: Tensor) -> Tensor:
        """Return the loss of queries (K, L, D) or (N, K, L, D)."""
        return query_diversity_loss(queries, pairs=self.pairs, reduction=self.reduction)


class TopologyLoss(FeatureLoss):
    r"""HVL's topology of the class embeddings; see :func:`~classbalance_losses.functional.topology_loss`.

    Args:
        reduction: "sum" (as printed) or "mean" over the pairs of classes.

    Shape:
        - text: (K, D), learnt; prototypes: (K, D'), constant.
        - Output: a scalar, in float32 or, for float64 text, float64.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.

    Examples:
        >>> text, prototypes = torch.randn(19, 512, requires_grad=True), torch.randn(19, 512)
        >>> TopologyLoss()(text, prototypes).backward()
    """

    _shown = ("reduction",)

    def __init__(self, *, reduction: str = "sum") -> None:
        check_choice("reduction", reduction, _REDUCTIONS)
        super().__init__()
        self.reduction = reduction

    def forward(self, text: Tensor, prototypes: Tensor) -> Tensor:
        """Return the loss of embeddings (K, D) against prototypes (K, D')."""
        return topology_loss(text, prototypes, reduction=self.reduction)


class AnchorLoss(FeatureLoss):
    r"""HVL's anchors of the class embeddings; see :func:`~classbalance_losses.functional.anchor_loss`.

    Args:
        normalize: scale projected embeddings and prototypes to length 1; the paper does not say.
        reduction: "sum" (as printed) or "mean" over the classes.

    Shape:
        - projected: (K, D), what Φ makes of the learnt embeddings; prototypes: (K, D), constant.
        - Output: a scalar, in float32 or, for float64 projected, float64. It may be negative.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.

    Examples:
        >>> linear = torch.nn.Linear
        >>> phi = torch.nn.Sequential(linear(256, 512), torch.nn.ReLU(), linear(512, 512))
        >>> AnchorLoss()(phi(torch.randn(19, 256)), torch.randn(19, 512)).backward()
    """

    _shown = ("normalize", "reduction")

    def __init__(self, *, normalize: bool = True, reduction: str = "sum") -> None:
        check_choice("reduction", reduction, _REDUCTIONS)
        check_flag("normalize", normalize)
        super().__init__()
        self.normalize = normalize
        self.reduction = reduction

    def forward(self, projected: Tensor, prototypes: Tensor) -> Tensor:
        """Return the loss of projected embeddings (K, D) against prototypes (K, D)."""
        return anchor_loss(projected, prototypes, normalize=self.normalize, reduction=self.reduction)


class PromptLoss(FeatureLoss):
    r"""HVL's :math:`L_{\text{prompt}}`; see :func:`~classbalance_losses.functional.prompt_loss`.

    Args:
        normalize: of the anchors: scale projected embeddings and prototypes to length 1.
        reduction: of both: "sum" (as printed) or "mean".

    Shape:
        - text: (K, D); projected: (K, D'); prototypes: (K, D'), constant.
        - Output: a scalar, in float32, or float64 where an argument is. It may be negative.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.

    Examples:
        >>> linear, text = torch.nn.Linear, torch.randn(19, 256, requires_grad=True)
        >>> phi = torch.nn.Sequential(linear(256, 512), torch.nn.ReLU(), linear(512, 512))
        >>> PromptLoss()(text, phi(text), torch.randn(19, 512)).backward()
    """

    _shown = ("normalize", "reduction")

    def __init__(self, *, normalize: bool = True, reduction: str = "sum") -> None:
        check_choice("reduction", reduction, _REDUCTIONS)
        check_flag("normalize", normalize)
        super().__init__()
        self.normalize = normalize
        self.reduction = reduction

    def forward(self, text: Tensor, projected: Tensor, prototypes: Tensor) -> Tensor:
        """Return the loss of text (K, D) and its projection (K, D') against prototypes (K, D')."""
        return prompt_loss(text, projected, prototypes, normalize=self.normalize, reduction=self.reduction)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
