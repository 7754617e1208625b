"""GBW's quadratic programme over class weights: an exact projection, and the solver it is tested against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from classbalance_losses._validate_classes import Numbers, as_numbers
from classbalance_losses._validate_options import check_choice, check_range
from classbalance_losses.kernels.simplex import free_weights, project_to_simplex


def solve_class_weights(
    squared_norms: Numbers,
    *,
    regularization: float | None = None,
    total: float | None = None,
    solver: str = "projection",
    quadratic: Tensor | None = None,
) -> Tensor:
    r"""Return the class weights of GBW's quadratic programme (arXiv 2407.01327, equation 11).

    .. math:: \min_v\; -g^\top v + \lambda \lVert v \rVert^2 \quad\text{s.t.}\quad v \ge 0,\; \sum_c v_c = s

    Completing the square turns it into the projection of :math:`u = g / (2 \lambda)` on the scaled simplex,
    which is solved exactly, on the device of g and without synchronisation. Where every weight is positive
    the answer is :math:`v_c = s/C + (g_c - \bar g) / (2 \lambda)`.

    Args:
        squared_norms: g, shape (C,), floating point; the squared gradient norm of each class.
        regularization: λ > 0, in the units of g; ``float("inf")`` gives equal weights. Not used with ``quadratic``.
        total: s > 0, what the weights add up to; the number of classes by default.
        solver: "projection", or "cvxpy" (the extra ``[qp]``), which runs on the host and synchronises.
        quadratic: a positive semidefinite matrix Q, shape (C, C), in the place of λI, for the general
            programme :math:`v^\top Q v - g^\top v` (equation 9 before Q becomes λI); only with "cvxpy".

    Returns:
        The weights v, shape (C,), in the dtype of ``squared_norms``; constant, no gradient.

    Raises:
        ValueError: if a shape, an option or a number is out of its range.
        TypeError: if ``squared_norms`` is not floating point.
        ModuleNotFoundError: if cvxpy is asked for and not installed.
    """
    squared_norms = as_numbers("squared_norms", squared_norms)
    if not squared_norms.is_floating_point():
        raise TypeError(
            f"Expected squared_norms of a floating-point dtype, got {squared_norms.dtype}. Pass "
            "torch.as_tensor(squared_norms).float()."
        )
    if squared_norms.ndim != 1 or squared_norms.numel() == 0:
        raise ValueError(f"Expected squared_norms of shape (C,), got {tuple(squared_norms.shape)}.")
    check_choice("solver", solver, ("projection", "cvxpy"))
    check_quadratic(quadratic, squared_norms, solver)
    if quadratic is None:
        if regularization is None:
            raise ValueError("Expected regularization > 0 (or quadratic with solver='cvxpy'), got neither.")
        check_range("regularization", regularization, 0, open_low=True)
    total = float(squared_norms.shape[0]) if total is None else total
    check_range("total", total, 0, open_low=True)
    norms = squared_norms.detach()
    wide = norms.to(torch.promote_types(norms.dtype, torch.float32))
    if solver == "projection" and regularization is not None:
        weights = project_to_simplex(free_weights(wide, regularization), total)
    else:
        weights = solve_with_cvxpy(norms, regularization, total, quadratic)
    return weights.to(norms.dtype)


def check_quadratic(quadratic: Tensor | None, norms: Tensor, solver: str) -> None:
    """Check the general programme's matrix: given to cvxpy alone, and of shape (C, C)."""
    if quadratic is None:
        return
    if solver != "cvxpy":
        raise ValueError("The projection solves the printed programme only: quadratic needs solver='cvxpy'.")
    if tuple(quadratic.shape) != (norms.numel(), norms.numel()):
        raise ValueError(
            f"Expected quadratic of shape ({norms.numel()}, {norms.numel()}), got {tuple(quadratic.shape)}."
        )


def solve_with_cvxpy(
    norms: Tensor, regularization: float | None, total: float, quadratic: Tensor | None
) -> Tensor:
    """Solve the programme as printed, on the host, in float64."""
    cvxpy = import_cvxpy()
    g = norms.cpu().double().numpy()
    v = cvxpy.Variable(len(g))
    if quadratic is not None:
        penalty = cvxpy.quad_form(v, quadratic.detach().cpu().double().numpy())
    else:
        penalty = 0.0 if regularization is None else regularization * cvxpy.sum_squares(v)
    problem = cvxpy.Problem(cvxpy.Minimize(penalty - g @ v), [v >= 0, cvxpy.sum(v) == total])
    problem.solve(solver=cvxpy.CLARABEL)
    if problem.status != "optimal":
        raise RuntimeError(f"cvxpy did not solve the class-weight programme: status {problem.status!r}.")
    solution = torch.as_tensor(v.value, dtype=torch.float64, device="cpu")
    return solution.clamp(min=0).to(norms.dtype).to(norms.device)


def import_cvxpy() -> Any:
    """Import the optional solver when it is first needed."""
    try:
        import cvxpy  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "solver='cvxpy' needs cvxpy: pip install 'classbalance_losses[qp]', or use solver='projection'."
        ) from error
    return cvxpy
