r"""The pull loss of T2S-DA: features of each class, in any style, drawn to the source's mean of that class.

Haochen Wang et al., "Pulling Target to Source: A New Perspective on Domain Adaptive Semantic Segmentation",
IJCV, equation 5:

.. math::
    L = \frac{1}{C} \sum_c w^*_c \sum_{(q, k^+) \in K_c^+} \ell(q, k^+)

with InfoNCE (equation 4) or the squared distance between unit vectors for ℓ. Keys and weights are constants.
No code by the authors could be found: what the paper leaves open is settled in the docstrings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from classbalance_losses._distributed import ProcessGroup, joined_value
from classbalance_losses._recompute import first_time, recomputable
from classbalance_losses._validate_features import (
    check_count,
    check_even,
    check_feature_map,
    check_mask,
    check_negatives,
    check_num_classes,
    check_probability_map,
    check_pull_options,
    check_pull_vectors,
    check_same_device,
    check_same_width,
)
from classbalance_losses._validate_options import as_label, check_choice, check_common, check_range
from classbalance_losses.kernels.call import replaced
from classbalance_losses.kernels.factors import per_pixel
from classbalance_losses.losses._base import FeatureLoss
from classbalance_losses.ops.precision import without_autocast
from classbalance_losses.ops.prototypes import (
    class_confidence,
    class_prototypes,
    in_classes,
    unit_vectors,
    weights_from_confidence,
)
from classbalance_losses.ops.sampling import (
    domain_equal_negatives,
    pick_vectors,
    sample_class_balanced,
    unreliable_pixels,
)
from classbalance_losses.ops.similarity import contrast, pair_weight
from classbalance_losses.state.memory import Entry, Memory, Recalled

Step = tuple[Recalled, dict[str, Tensor]]  # of the memory: what it was, and what it becomes


@recomputable
def pull_loss(
    queries: Tensor,
    query_labels: Tensor,
    prototypes: Tensor,
    negatives: Tensor | None,
    class_weight: Tensor,
    *,
    objective: str = "infonce",
    temperature: float = 0.2,
    pair_reduction: str = "mean",
    query_mask: Tensor | None = None,
    negative_mask: Tensor | None = None,
    prototype_mask: Tensor | None = None,
    ignore_index: int = -100,
    process_group: ProcessGroup = None,
) -> Tensor:
    r"""Pull each query to its class's prototype, and with InfoNCE away from negatives (T2S-DA, equation 5).

    .. math::
        L = \frac{1}{C} \sum_c w^*_c \, \frac{1}{n_c} \sum_{i:\, y_i = c} \ell_i

    over the C classes and the :math:`n_c` valid queries of each. With all vectors scaled to length 1 inside,
    k⁺ the prototype of the query's class and k⁻ its negatives,

    .. math::
        \ell_i^{\text{infonce}} = -\log \frac{e^{q \cdot k^+ / \tau}}
                                             {e^{q \cdot k^+ / \tau} + \sum_j e^{q \cdot k_j^- / \tau}},
        \qquad
        \ell_i^{\text{mse}} = \lVert q - k^+ \rVert^2 = 2 - 2\, q \cdot k^+

    The gradient flows to the queries alone; prototypes, negatives and weights are constants. InfoNCE is a
    cross-entropy whose logits are similarities over τ: with P its softmax and q of length 1,
    :math:`\partial \ell / \partial q = [-(1 - P_+) k^+ + \sum_j P_j k_j^-] / \tau`. It is 0 without negatives
    and log(1 + m) where all keys are equal.

    Readings: equation 5 sums a class's pairs, so a frequent class, which has more queries, weighs more than
    its :math:`w^*_c` says, and ``pair_reduction="sum"`` is that; "mean" is this library's default. The 1/C
    stands as printed, though the weights add up to 1 already.

    Args:
        queries: the student's features, shape (Q, D), floating point.
        query_labels: their classes, shape (Q,), of any integer dtype.
        prototypes: k⁺ for each class, shape (C, D). A row of zeros means "no prototype": the queries of that
            class take no part.
        negatives: k⁻, shape (C, M, D) where the queries of a class share them, or (Q, M, D). The first
            reading holds if the first axis has length C, even where Q = C. Not used, and may be ``None``,
            with "mse".
        class_weight: w*, shape (C,), used as given; see ``class_confidence_weights``. An absent class's
            weight is not shared out among the others.
        objective: "infonce" or "mse".
        temperature: τ > 0, not used with "mse" (the paper's 0.2).
        pair_reduction: "mean" or "sum" over the queries of a class.
        query_mask: shape (Q,), bool; queries outside are inert, as are those labelled ``ignore_index``: they
            may be NaN, and their gradient is exactly 0.
        negative_mask: shape (C, M) or (Q, M), as ``negatives``; bool. Vectors outside are left out.
        prototype_mask: shape (C,), bool; a class outside takes no part.
        ignore_index: label of the queries to leave out.
        process_group: ``None`` for this process, ``"world"`` or a group to count the queries of all its
            ranks. The value is then the joined batch's; the gradient is the number of ranks times the local
            part, so that DistributedDataParallel's mean is the gradient of the joined batch. Prototypes and
            weights must be the same on all ranks; negatives may differ.

    Returns:
        A scalar in float32 or, for float64 queries, float64. Without valid queries it is 0, in the graph. A
        query of length 0 has no direction: similarity 0 to all keys, gradient 0.

    Raises:
        ValueError: if a shape or an option does not fit.
        TypeError: if a dtype does not fit.
        IndexError: if a label is neither a class nor ``ignore_index`` (read on the CPU).
    """
    check_pull_options(objective, temperature, pair_reduction)
    check_common(ignore_index, "mean", process_group)
    check_pull_vectors(queries, query_labels, prototypes, class_weight, ignore_index)
    check_mask("query_mask", query_mask, tuple(query_labels.shape))
    check_mask("prototype_mask", prototype_mask, (prototypes.shape[0],))
    dtype = torch.promote_types(queries.dtype, torch.float32)
    labels = query_labels.long()

    with without_autocast(queries):
        if prototype_mask is not None:
            prototypes = torch.where(prototype_mask.unsqueeze(1), prototypes, 0)
        keys = unit_vectors(prototypes.detach().to(dtype))
        keep = in_classes(labels, keys.shape[0], ignore_index)
        keep = keep & (keys != 0).any(1)[torch.where(keep, labels, 0)]
        keep = keep if query_mask is None else keep & query_mask
        labels = torch.where(keep, labels, 0)

        query = unit_vectors(torch.where(keep.unsqueeze(1), queries, 0).to(dtype))
        if objective == "mse":
            loss = torch.where(keep, (query - keys.index_select(0, labels)).square().sum(1), 0)
        else:
            away = check_negatives(queries, prototypes, negatives, negative_mask)
            loss = contrast(query, keys, away, negative_mask, labels, keep, temperature)
        weight = pair_weight(labels, keep, class_weight.to(dtype), pair_reduction, process_group)
        total = (loss * per_pixel(weight.to(dtype), labels, keep)).sum()
    return joined_value(total, process_group)


class PullLoss(Memory, FeatureLoss):
    r"""The pull step of T2S-DA in one call: queries, prototypes, negatives, class weights and the loss.

    The queries are the student's features of source images in the target's style, drawn in proportion to each
    class's share; the prototypes are the class means of the teacher's features of the source; the negatives
    are half teacher's features of the source's other classes, half those of unreliable target pixels
    pseudo-labelled with other classes; the weights are :math:`w^*_c \propto (1 - \mathrm{conf}(c))^\beta`,
    from the teacher's confidence in the target pixels that it labels c. Then equation 5, see
    :func:`~classbalance_losses.functional.pull_loss`. The paper adds it with a factor λ = 0.1 to the losses
    of both domains.

    What the paper leaves open or misprints (no code by the authors could be found):

    * A class that no target pixel is labelled with has no confidence; see ``absent``. The paper takes the
      confidence from the current batch; ``momentum=0`` is that. The default is a running mean, which starts
      at 0, so that the first weights are nearly equal.
    * Equation 5 sums over pairs; the default here is the mean, see ``pair_reduction``. Its 1/C is kept.
    * Equation 15's union of negatives over c is read with the query's own class, whose queries share a draw.
    * β here is the power of equation 17, not the β of the Fourier stylisation (equation 7). The text on the
      ablations cites wrong equations: τ is in equation 4, β in 17, α in the choice of negatives.
    * "Below the α-percentile" is taken over the target pixels of the batch; see ``unreliable_pixels``.

    Args:
        num_classes: C, at least 2.
        objective: "infonce" or "mse"; "mse" takes no negatives.
        temperature: τ > 0.
        power: β >= 0; 0 gives equal weights.
        unreliable_fraction: α in [0, 1], the share of target pixels that count as unreliable.
        queries_per_class: n >= 1, the mean number of queries of a class; a batch has about C·n.
        negatives: m, even, for each class.
        pair_reduction: "mean" or "sum" over the queries of a class.
        momentum: of the running mean of the confidences, in [0, 1].
        absent: a class that the target's pseudo-labels lack "carry" keeps its running mean; "max" counts as
            confidence 0, which enters the mean; "exclude" keeps its mean and gets weight 0 in this step.
        ignore_index: label of the student's and the source's pixels to leave out; their features may be NaN.
        process_group: ``None`` for this process, ``"world"`` or a group: prototypes, confidences, the
            percentile and the numbers of queries are then those of all its ranks. Queries and negatives are
            drawn on each rank from its own pixels.

    Shape:
        - student_features (N, D, \*) with student_labels (N, \*); source_features (N, D, \*) with
          source_labels (N, \*); target_features (N, D, \*) with target_probabilities (N, C, \*), after the
          softmax. The three may differ in N and in their spatial sizes; features and labels of one may not.
        - Output: a scalar, in float32 or, for float64 student features, float64; gradient to them alone.

    Attributes:
        class_confidence: buffer (C,), the running mean of conf(c). Changes in training with gradients on alone.
        class_weight: buffer (C,), w* of the last training step; what evaluation uses. 1/C at first.
        seen: buffer (C,), int64, the training steps whose target pixels were labelled with the class.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.
        IndexError: for a label that is no class (on the CPU).

    Examples:
        >>> criterion = PullLoss(num_classes=19, ignore_index=255)
        >>> student, source, target = (torch.randn(2, 64, 32, 32) for _ in range(3))
        >>> labels = torch.randint(0, 19, (2, 32, 32))
        >>> probabilities = torch.randn(2, 19, 32, 32).softmax(1)
        >>> loss = criterion(
        ...     student.requires_grad_(), labels, source_features=source, source_labels=labels,
        ...     target_features=target, target_probabilities=probabilities,
        ... )
        >>> (0.1 * loss).backward()
    """

    class_confidence: Tensor
    class_weight: Tensor
    seen: Tensor
    _shown = (
        *("num_classes", "objective", "temperature", "power", "unreliable_fraction", "queries_per_class"),
        *("negatives", "pair_reduction", "momentum", "absent", "ignore_index"),
    )

    def __init__(
        self,
        *,
        num_classes: int,
        objective: str = "infonce",
        temperature: float = 0.2,
        power: float = 0.5,
        unreliable_fraction: float = 0.5,
        queries_per_class: int = 128,
        negatives: int = 1024,
        pair_reduction: str = "mean",
        momentum: float = 0.99,
        absent: str = "carry",
        ignore_index: int = -100,
        process_group: ProcessGroup = None,
    ) -> None:
        check_num_classes(num_classes)
        check_pull_options(objective, temperature, pair_reduction)
        check_range("power", power, 0)
        check_range("unreliable_fraction", unreliable_fraction, 0, 1)
        check_count("queries_per_class", queries_per_class)
        check_even("negatives", negatives)
        check_range("momentum", momentum, 0, 1)
        check_choice("absent", absent, ("carry", "max", "exclude"))
        check_common(ignore_index, "mean", process_group)
        super().__init__()
        self.num_classes = num_classes
        self.objective = objective
        self.temperature = temperature
        self.power = power
        self.unreliable_fraction = unreliable_fraction
        self.queries_per_class = queries_per_class
        self.negatives = negatives
        self.pair_reduction = pair_reduction
        self.momentum = momentum
        self.absent = absent
        self.ignore_index = as_label(ignore_index)
        self.process_group = process_group
        self._remember(
            num_classes,
            class_confidence=Entry((None,), torch.float32),
            class_weight=Entry((None,), torch.float32, initial=1 / num_classes),
            seen=Entry((None,), torch.int64),
        )

    @recomputable
    def forward(
        self,
        student_features: Tensor,
        student_labels: Tensor,
        *,
        source_features: Tensor,
        source_labels: Tensor,
        target_features: Tensor,
        target_probabilities: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss; in training mode, first take the batch's confidences into the running mean."""
        check_same_device(student_features, source_features, target_features)
        check_feature_map("student_features", student_features, "student_labels", student_labels)
        check_feature_map("source_features", source_features, "source_labels", source_labels)
        check_probability_map("target_probabilities", target_probabilities, target_features, self.num_classes)
        check_same_width(student_features, source_features, target_features)
        confidence, pseudo_labels = target_probabilities.detach().max(1)

        drawn, query_mask = sample_class_balanced(
            student_labels,
            self.num_classes,
            samples_per_class=self.queries_per_class,
            ignore_index=self.ignore_index,
            generator=generator,
        )
        prototypes = class_prototypes(
            source_features,
            source_labels,
            self.num_classes,
            ignore_index=self.ignore_index,
            process_group=self.joined_group,
        )
        negatives, negative_mask = None, None
        if self.objective == "infonce":
            unreliable = unreliable_pixels(
                confidence, fraction=self.unreliable_fraction, process_group=self.joined_group
            )
            negatives, negative_mask = domain_equal_negatives(
                (source_features, target_features),
                (source_labels, pseudo_labels),
                unreliable,
                self.num_classes,
                samples=self.negatives,
                ignore_index=self.ignore_index,
                generator=generator,
            )
        weight, step = self._class_weight(confidence, pseudo_labels)
        loss = pull_loss(
            pick_vectors(student_features, drawn),
            student_labels.flatten()[drawn],
            prototypes,
            negatives,
            weight,
            objective=self.objective,
            temperature=self.temperature,
            pair_reduction=self.pair_reduction,
            query_mask=query_mask,
            negative_mask=negative_mask,
            ignore_index=self.ignore_index,
            process_group=self.joined_group,
        )
        for recalled, values in step:
            self._keep(replaced(recalled, finite=recalled.finite & loss.detach().isfinite()), **values)
        return loss

    def _class_weight(self, confidence: Tensor, pseudo_labels: Tensor) -> tuple[Tensor, list[Step]]:
        """Return w*, and the step of the memory that is made once the loss is known to be finite, if one is made."""
        if not self._moves():
            return self.class_weight.clone(), []
        batch, present = class_confidence(
            confidence, pseudo_labels, self.num_classes, process_group=self.joined_group
        )
        step: list[Step] = []

        def follow() -> Tensor:
            recalled = self._recall(self.num_classes, batch.isfinite().all(), self.joined_group)
            values = self._followed(recalled.values, batch, present)
            step.append((recalled, values))
            return torch.where(recalled.finite, values["class_weight"], recalled.values["class_weight"])

        return first_time(self, torch.cat([batch, present.to(batch.dtype)]), follow), step

    def _followed(self, last: dict[str, Tensor], batch: Tensor, present: Tensor) -> dict[str, Tensor]:
        """Take the batch's confidences into the running mean."""
        everyone = torch.ones_like(present)
        mixed = self.momentum * last["class_confidence"] + (1 - self.momentum) * batch
        mean = torch.where(everyone if self.absent == "max" else present, mixed, last["class_confidence"])
        weight = weights_from_confidence(mean, present if self.absent == "exclude" else everyone, self.power)
        return {"class_confidence": mean, "class_weight": weight, "seen": last["seen"] + present}
