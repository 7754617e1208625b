r"""GBW, gradient-based class weighting: at every step the weights solve a small quadratic programme.

Alcover-Couso, Escudero-Viñolo, SanMiguel, Bescós, "Gradient-based Class Weighting for Unsupervised Domain
Adaptation in Dense Prediction Visual Tasks", arXiv 2407.01327, equations 11 and 2:

.. math::
    v = \arg\min_v\; -g^\top v + \lambda \lVert v \rVert^2
        \;\text{s.t.}\; v \ge 0,\; \sum_c v_c = C, \qquad g_c = \lVert \nabla l_c \rVert^2

.. math:: L = \frac{1}{N} \sum_i v_{y_i}\, \ell_i \qquad\text{or}\qquad L = \sum_c v_c\, m_c

:math:`l_c = m_c` is the mean cross-entropy of class c.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from classbalance_losses._distributed import ProcessGroup
from classbalance_losses._options import Common, shows_options
from classbalance_losses._recompute import first_time, recomputable
from classbalance_losses._validate import check_tensor
from classbalance_losses._validate_features import check_last_layer_features
from classbalance_losses._validate_options import check_choice, check_range
from classbalance_losses.kernels.forms.reference import CrossEntropy, smoothed
from classbalance_losses.kernels.simplex import weights_from_norms
from classbalance_losses.losses._base import PixelLoss
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.gradients import OF_SQUARED_ERRORS, READINGS, Gradients, gather, squared_norms
from classbalance_losses.ops.logits import full_size_features
from classbalance_losses.ops.projection import solve_with_cvxpy
from classbalance_losses.ops.soft import batch_for
from classbalance_losses.ops.sums import Needs
from classbalance_losses.ops.weights import inverse_power
from classbalance_losses.state.memory import Entry, Memory


class Programme(NamedTuple):
    """How the weights are found."""

    regularization: float = 1.0
    gradient: str = "pixel_mean"
    classes: str = "all"
    solver: str = "projection"

    def check(self) -> None:
        """Check the options."""
        check_range("regularization", self.regularization, 0, open_low=True)
        check_choice("gradient", self.gradient, READINGS)
        check_choice("classes", self.classes, ("all", "present"))
        check_choice("solver", self.solver, ("projection", "cvxpy"))

    def gather(self, batch: Batch, features: Tensor | None) -> Gradients:
        """Return the cross-entropy of a batch, and what its gradient's reading needs."""
        of_images = batch.logits.input[:: batch.groups]  # else a row for each of several labels
        check_last_layer_features(features, of_images, self.gradient)
        return gather(batch, self.gradient, full_size_features(features, batch.logits))

    def solve(self, gradients: Gradients) -> Tensor:
        """Return v (C,) for one batch."""
        present = self.classes == "present"
        if gradients.squared is not None and self.solver == "projection":
            return gradients.batch.backend.project(
                gradients.squared,
                gradients.n,
                self.regularization,
                present=present,
                by_number=self.gradient == "class_logits",
            )
        norms, is_present = squared_norms(gradients, self.gradient), gradients.n > 0
        if self.solver == "cvxpy":
            return _solve_on_host(norms, is_present, self)
        return weights_from_norms(norms, is_present, self.regularization, present=present)


def _solve_on_host(norms: Tensor, present: Tensor, programme: Programme) -> Tensor:
    """Solve by cvxpy, over the classes that take part; this one synchronises."""
    part = torch.ones_like(present) if programme.classes == "all" else present
    weights = torch.ones_like(norms)
    if bool(part.any()):
        total = float(part.sum())
        weights[part] = solve_with_cvxpy(norms[part], programme.regularization, total, None)
    return weights


@shows_options
@recomputable
def gbw_loss(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    features: Tensor | None = None,
    regularization: float = 1.0,
    gradient: str = "pixel_mean",
    classes: str = "all",
    apply: str = "pixel",
    solver: str = "projection",
    label_smoothing: float = 0.0,
    **common: Unpack[Common],
) -> Tensor:
    """Functional form of :class:`classbalance_losses.GBWLoss`, which describes the arguments.

    It keeps nothing between calls: the weights are this batch's.
    """
    programme = Programme(regularization, gradient, classes, solver)
    programme.check()
    gradients = programme.gather(batch_for(input, target, pixel_weight, common), features)
    return _weigh(gradients, programme.solve(gradients), apply, label_smoothing)


def gbw_class_weights(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    features: Tensor | None = None,
    regularization: float = 1.0,
    gradient: str = "pixel_mean",
    classes: str = "all",
    solver: str = "projection",
    ignore_index: int = -100,
    process_group: ProcessGroup = None,
) -> Tensor:
    """Return GBW's class weights v (C,) for one batch, in float32 or the logits' float64; no gradient.

    The arguments, and what is raised, are those of :class:`classbalance_losses.GBWLoss`.
    """
    programme = Programme(regularization, gradient, classes, solver)
    programme.check()
    check_tensor("input", input)
    options: Common = {"ignore_index": ignore_index, "process_group": process_group}
    batch = batch_for(input.detach(), target, pixel_weight, options)
    return programme.solve(programme.gather(batch, features)).to(batch.dtype)


def class_gradient_norms(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    features: Tensor | None = None,
    gradient: str = "pixel_mean",
    ignore_index: int = -100,
    process_group: ProcessGroup = None,
) -> Tensor:
    r"""Return the squared gradient norm of each class's loss, g (C,), in closed form.

    With :math:`\delta_i = p_i - e_{y_i}`, the gradient of a pixel's cross-entropy, and q = ``pixel_weight``:

    ===================== ==========================================================================
    ``gradient``          :math:`g_c`
    ===================== ==========================================================================
    "pixel_mean"          :math:`\frac{1}{n_c} \sum_{y_i = c} \lVert q_i \delta_i \rVert^2`, in [0, 2]
    "class_logits"        :math:`\lVert \nabla_z l_c \rVert^2`, the above over :math:`n_c`
    "official"            :math:`\sum_i \delta_{ic}^2 / (n_{y_i} + 1)^2`, as released (without q)
    "bias"                :math:`\lVert \frac{1}{n_c} \sum_{y_i = c} q_i \delta_i \rVert^2`
    "loss"                :math:`\frac{1}{n_c} \sum_{y_i = c} q_i \ell_i` (no squared norm)
    "last_layer_weight"   :math:`\lVert \frac{1}{n_c} \sum_{y_i = c} q_i \delta_i f_i^\top \rVert_F^2`
    ===================== ==========================================================================

    "bias" and "last_layer_weight" are the exact gradients of :math:`l_c` with respect to a last layer
    :math:`z = W f + b`. An absent class has norm 0, except under "official", whose channel c also collects
    other classes' false positives. The first row is this library's default because its scale, unlike that of the
    second, does not shrink with the number of pixels.

    Args:
        input: logits (N, C, \*).
        target: class indices (N, \*).
        pixel_weight: q, (N, \*), non-negative.
        features: f, (N, D, \*), what enters the last layer; for "last_layer_weight" alone.
        gradient: one of the rows above.
        ignore_index: the label of pixels to leave out.
        process_group: ``None``, "world" or a group, over whose ranks the sums run.

    Returns:
        g, (C,), in float32 or the logits' float64; no gradient.

    Raises:
        ValueError: for shapes or options out of range, or features missing or not used.
        TypeError: for dtypes.
        IndexError: for a target that is no class (on the CPU).
    """
    check_choice("gradient", gradient, READINGS)
    check_tensor("input", input)
    options: Common = {"ignore_index": ignore_index, "process_group": process_group}
    batch = batch_for(input.detach(), target, pixel_weight, options)
    return squared_norms(Programme(gradient=gradient).gather(batch, features), gradient).to(batch.dtype)


def _weigh(gradients: Gradients, class_weight: Tensor, apply: str, label_smoothing: float) -> Tensor:
    """Return the loss under given class weights v (C,)."""
    _check(apply, label_smoothing)
    batch, form = gradients.batch, smoothed(CrossEntropy(), label_smoothing)
    class_weight = class_weight.to(batch.dtype)
    if apply == "pixel":
        return batch.mean_of(form, class_weight)
    # Equation 2 is a sum of class means: its division is in the weights already.
    return batch.sum_of(form, class_weight * inverse_power(gradients.n, 1, batch.dtype))


class GBWLoss(Memory, PixelLoss):
    r"""Cross-entropy whose class weights solve a quadratic programme over class gradients, at every step.

    .. math::
        L = \frac{1}{N} \sum_i q_i\, v_{y_i}\, \ell_i, \qquad
        v = \arg\min_{v \ge 0,\; \sum_c v_c = C} -g^\top v + \lambda \lVert v \rVert^2

    (Alcover-Couso et al., arXiv 2407.01327, equation 11). :math:`g_c` is the squared gradient norm of class
    c's mean loss; the readings of it are in :func:`classbalance_losses.functional.class_gradient_norms`.
    The solution is a projection, :math:`v_c = \max(0, g_c / (2\lambda) - \tau)`: while all weights are positive,
    :math:`v_c = 1 + (g_c - \bar g) / (2 \lambda)`. λ → ∞ is cross-entropy. v carries no gradient.

    Paper, code and this class: the paper's literal gradient of a mean over pixels shrinks as :math:`1/n_c`,
    and so does the released code's (RobertoAlcoverCouso/GBPCW), so that at the paper's λ = 1 its weights stay
    within about 0.1 % of 1 on half a million pixels; the paper's ablation over λ fits a gradient of order 1.
    Hence the default "pixel_mean", in [0, 2]: for λ ≥ 1 every weight lies in [0, 2]. The released code fixes
    λ = 1 and 19 classes, falls back to plain cross-entropy on any exception, and divides by ignored pixels too;
    "official" is its gradient alone. The QP's extra term -λ there changes nothing: the projection ignores
    constant shifts.

    Args:
        regularization: λ > 0, in the units of g.
        gradient: "pixel_mean", "class_logits", "official", "bias", "loss" (class weighting by loss, LBW) or
            "last_layer_weight" (then pass ``features=``).
        classes: "all": v sums to C, and absent classes, with norm 0, keep their share. "present": the
            programme runs over the K present classes, with sum K, and absent classes have weight 1.
        apply: "pixel" as above (released code); "class" for equation 2, :math:`\sum_c v_c m_c`.
        solver: "projection": exact, on the device, no synchronisation. "cvxpy": the QP as printed, on the host.
        momentum: m in [0, 1] for :math:`v \leftarrow m\, v_{\text{last}} + (1 - m)\, v`; the first batch has
            its own weights. ``None``: every batch has its own, and nothing is remembered.
        num_classes: C, which fixes the shape of what ``momentum`` remembers; ``None`` to take it from the first batch.
        label_smoothing: ε in [0, 1]: a pixel's loss is
            :math:`(1 - \varepsilon) \ell_i - \frac{\varepsilon}{C} \sum_c \log p_{ic}`
            in the place of :math:`\ell_i`, which does not change g.
        task: "multiclass" for a softmax, "binary" for one logit a pixel, "multilabel" for a sigmoid each.
        upsample: "linear" to interpolate the logits to the target's size; ``None`` where they have it.
        align_corners: of the interpolation, as in ``torch.nn.functional.interpolate``.
        ignore_index: the label of pixels to leave out, or several; their logits may be NaN.
        reduction: "mean" divides by the valid pixels ("pixel"; under "class" the sum is the loss); "sum";
            "none" the terms :math:`q_i v_{y_i} \ell_i` (under "class" over :math:`n_{y_i}`).
        process_group: ``None`` for this process's statistics, "world" or a group for those of all its ranks.

    Attributes:
        class_weight: the weights last used in training, (C,), float32; before the first call empty or, with
            ``momentum`` and ``num_classes``, ones. Without ``momentum`` it is there to be read and is not saved.
        seen: with ``momentum``, the number of training batches in ``class_weight``, 0-dim.

    Shape:
        - input: logits (N, C, \*), of any floating-point dtype; the loss is float32, or float64 for float64.
          With ``upsample``, of any size in one to three spatial axes; on fast paths full-size logits are not kept.
        - target: class indices (N, \*) of uint8, int16, int32 or int64, or shares (N, C, \*), floats in [0, 1]; of
          labels 0 and 1, any integer dtype or bool, or shares: (N, L, \*), for one (N, \*) too.
        - pixel_weight: q, (N, \*), of labels in the target's shape, non-negative; may require a gradient,
          which v, a constant, does not pass on. It scales the pixel's gradient in g too (equation 12), so a class
          of low confidence does not win its weight back.
        - features: (N, D, \*), what enters the last layer, of the logits' size; for "last_layer_weight" alone.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.
        IndexError: for a target that is no class (on the CPU).
        ModuleNotFoundError: if cvxpy is asked for and not installed.
    """

    _shown = ("regularization", "gradient", "classes", "apply_to", "solver", "momentum")
    class_weight: Tensor
    seen: Tensor

    @shows_options
    def __init__(
        self,
        *,
        regularization: float = 1.0,
        gradient: str = "pixel_mean",
        classes: str = "all",
        apply: str = "pixel",
        solver: str = "projection",
        momentum: float | None = None,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        programme = Programme(regularization, gradient, classes, solver)
        programme.check()
        _check(apply, label_smoothing)
        if momentum is not None:
            check_range("momentum", momentum, 0, 1)
        super().__init__(**common)
        self.regularization = regularization
        self.gradient = gradient
        self.classes = classes
        self.apply_to = apply  # `apply` is a method of every nn.Module
        self.solver = solver
        self.momentum = momentum
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        if momentum is None:
            self._remember(num_classes)
        else:
            self._remember(
                num_classes,
                class_weight=Entry((None,), torch.float32, initial=1.0),
                seen=Entry((), torch.int64),
            )

    def reset(self) -> None:
        """Forget every batch; without ``num_classes`` the next one may have another number of classes."""
        super().reset()
        if self.momentum is None:
            self.class_weight = torch.empty(0, dtype=torch.float32, device="cpu")

    @recomputable
    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        pixel_weight: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of logits (N, C, *) against labels (N, *)."""
        return self._of(batch_for(input, target, pixel_weight, self.common), features)

    @property
    def needs(self) -> Needs:
        """ℓ and the error that its gradient is made of."""
        return Needs(loss=True, error=self.gradient in OF_SQUARED_ERRORS)

    @property
    def takes_features(self) -> bool:  # type: ignore[override]
        """Whether a call needs ``features=``."""
        return self.gradient == "last_layer_weight"

    def of(self, batch: Batch) -> Tensor:
        """Return the loss of a batch that was checked."""
        return self._of(batch, None)

    def _of(self, batch: Batch, features: Tensor | None) -> Tensor:
        programme = Programme(self.regularization, self.gradient, self.classes, self.solver)
        programme.check()
        gradients = programme.gather(batch, features)
        class_weight = self._smoothed(programme.solve(gradients), gradients)
        return _weigh(gradients, class_weight, self.apply_to, self.label_smoothing)

    def _smoothed(self, own: Tensor, gradients: Gradients) -> Tensor:
        """Blend a batch's own weights with the remembered ones."""
        if self.momentum is None:
            if self._moves():
                self.class_weight = own.to(torch.float32, copy=True)
            return own
        check_range("momentum", self.momentum, 0, 1)
        total = gradients.batch.total_loss().to(own.dtype)
        blend = partial(self._blended, own, total, self.momentum, gradients.batch.process_group)
        return first_time(self, torch.cat([own, total.view(1)]), blend)

    def _blended(self, own: Tensor, total: Tensor, momentum: float, process_group: ProcessGroup) -> Tensor:
        finite = total.isfinite() & own.isfinite().all()
        recalled = self._recall(own.shape[0], finite, process_group)
        last, seen = recalled.values["class_weight"], recalled.values["seen"]
        mixed = torch.where(seen > 0, momentum * last + (1 - momentum) * own, own)
        self._keep(recalled, class_weight=mixed, seen=seen + 1)
        return torch.where(recalled.finite | (seen == 0), mixed, last)


def _check(apply: str, label_smoothing: float) -> None:
    check_choice("apply", apply, ("pixel", "class"))
    check_range("label_smoothing", label_smoothing, 0, 1)
