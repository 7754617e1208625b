"""GBW's quadratic programme: optimality conditions, closed forms, and two independent solvers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from references import solve_class_weights as by_bisection
from strategies import class_gradients
from torch import Tensor

from classbalance_losses.functional import solve_class_weights

STRENGTHS = st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e4])


def solve(g: np.ndarray | Tensor, strength: float, **options: object) -> Tensor:
    return solve_class_weights(torch.as_tensor(g), regularization=strength, **options)  # type: ignore[arg-type]


@given(class_gradients(), STRENGTHS)
def test_feasible(g: np.ndarray, strength: float) -> None:
    v = solve(g, strength)
    assert v.shape == (len(g),)
    assert (v >= 0).all()
    assert v.sum().item() == pytest.approx(len(g), rel=1e-9)


@given(class_gradients(), STRENGTHS)
def test_optimality_conditions(g: np.ndarray, strength: float) -> None:
    """2 lambda v_c - g_c = mu wherever v_c > 0, and is at least mu where v_c = 0."""
    v = solve(g, strength).numpy()
    slope = 2 * strength * v - g
    mu = slope[v > 0].max()
    scale = 1e-9 * (strength * len(g) + g.max() + 1)
    assert np.ptp(slope[v > 0]) <= scale
    assert (slope >= mu - scale).all()


@given(class_gradients(), STRENGTHS, st.sampled_from([0.5, 1.0, 19.0]))
def test_bisection_agrees(g: np.ndarray, strength: float, total: float) -> None:
    expected = by_bisection(g.tolist(), regularization=strength, total=total)
    np.testing.assert_allclose(
        solve(g, strength, total=total).numpy(), expected, rtol=1e-7, atol=1e-9 * total
    )


@given(class_gradients(min_size=2), STRENGTHS, st.floats(-5.0, 5.0), st.floats(0.1, 10.0))
def test_shift_and_scale(g: np.ndarray, strength: float, shift: float, scale: float) -> None:
    v = solve(g, strength).numpy()
    tolerance = 1e-9 * (1 + (g.max() + 5) / strength)
    np.testing.assert_allclose(solve(g + shift, strength).numpy(), v, atol=tolerance)
    np.testing.assert_allclose(solve(g * scale, strength * scale).numpy(), v, atol=tolerance)


@given(st.data(), STRENGTHS)
def test_non_expansive(data: st.DataObject, strength: float) -> None:
    """||v(g) - v(h)|| <= ||g - h|| / (2 lambda)."""
    g = data.draw(class_gradients(min_size=2))
    h = data.draw(class_gradients(min_size=len(g), max_size=len(g)))
    moved = np.linalg.norm(solve(g, strength).numpy() - solve(h, strength).numpy())
    assert moved <= np.linalg.norm(g - h) / (2 * strength) * (1 + 1e-9) + 1e-9


@given(class_gradients(min_size=2), STRENGTHS, st.randoms())
def test_order_of_classes(g: np.ndarray, strength: float, random: object) -> None:
    order = list(range(len(g)))
    random.shuffle(order)  # type: ignore[attr-defined]
    v = solve(g, strength).numpy()
    np.testing.assert_allclose(solve(g[order], strength).numpy(), v[order], atol=1e-9)
    steeper = g[:, None] >= g[None, :]
    assert (v[:, None] - v[None, :] >= -1e-12)[steeper].all()  # the steeper class never weighs less


@given(class_gradients(min_size=2), STRENGTHS)
def test_interior_solution_is_closed(g: np.ndarray, strength: float) -> None:
    assume(g.min() >= g.mean() - 2 * strength)
    np.testing.assert_allclose(solve(g, strength).numpy(), 1 + (g - g.mean()) / (2 * strength), atol=1e-9)


@given(st.integers(2, 8), STRENGTHS, st.floats(0.0, 0.5))
def test_one_hot_threshold(classes: int, strength: float, slack: float) -> None:
    """All weight goes to the steepest class iff it leads by at least 2 lambda C."""
    g = np.zeros(classes)
    g[-1] = 2 * strength * classes * (1 + slack)
    expected = np.zeros(classes)
    expected[-1] = classes
    np.testing.assert_allclose(solve(g, strength).numpy(), expected, atol=1e-9 * classes)
    g[-1] = 2 * strength * classes * 0.99
    assert (solve(g, strength) > 0).sum() > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_gradients_and_infinite_regularization_weigh_alike(dtype: torch.dtype) -> None:
    for strength in (1e-6, 1.0, math.inf):
        v = solve(torch.full((7,), 0.3, dtype=dtype), strength)
        assert v.dtype == dtype
        torch.testing.assert_close(v, torch.ones(7, dtype=dtype))
    assert torch.equal(
        solve(torch.tensor([0.0, 5.0, 1e30], dtype=dtype), math.inf), torch.ones(3, dtype=dtype)
    )


def test_single_class_and_huge_gradients() -> None:
    assert solve(torch.tensor([3.0]), 1.0).tolist() == [1.0]
    v = solve(torch.tensor([1e30, 0.0, 1e30], dtype=torch.float64), 1e-6)
    assert v.tolist() == [1.5, 0.0, 1.5]


def test_weights_are_constants() -> None:
    g = torch.rand(4, requires_grad=True)
    assert not solve(g, 1.0).requires_grad


@pytest.mark.parametrize("seed", range(8))
def test_scipy_agrees(seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    g, strength = rng.exponential(1.0, 5), float(rng.choice([0.05, 0.3, 2.0]))
    answer = optimize.minimize(
        lambda v: -g @ v + strength * v @ v,
        np.ones(5),
        jac=lambda v: -g + 2 * strength * v,
        bounds=[(0, None)] * 5,
        constraints={"type": "eq", "fun": lambda v: v.sum() - 5, "jac": lambda v: np.ones(5)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    v = solve(g, strength).numpy()
    # 8: at its end rounding leaves no way down, on some machines.
    assert answer.status in (0, 8), answer.message
    assert -g @ v + strength * v @ v <= answer.fun + 1e-9
    np.testing.assert_allclose(v, answer.x, atol=1e-5)


@pytest.mark.filterwarnings("default")  # of the solver, not ours
class TestCvxpy:
    @pytest.fixture(autouse=True)
    def _needs_cvxpy(self) -> None:
        pytest.importorskip("cvxpy")

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("strength", [0.01, 0.3, 10.0])
    @pytest.mark.parametrize("total", [None, 3.0])
    def test_cvxpy_agrees(self, seed: int, strength: float, total: float | None) -> None:
        g = np.random.default_rng(seed).exponential(1.0, 6)
        by_cvxpy = solve(g, strength, total=total, solver="cvxpy")
        np.testing.assert_allclose(by_cvxpy.numpy(), solve(g, strength, total=total).numpy(), atol=1e-4)

    def test_general_quadratic(self) -> None:
        """Q = lambda I is the printed programme; any positive semidefinite Q meets its optimality conditions."""
        rng = np.random.default_rng(0)
        g = torch.from_numpy(rng.exponential(1.0, 5))
        eye = solve_class_weights(
            g, regularization=1.0, solver="cvxpy", quadratic=0.3 * torch.eye(5, dtype=torch.float64)
        )
        np.testing.assert_allclose(eye.numpy(), solve(g, 0.3).numpy(), atol=1e-4)
        root = torch.from_numpy(rng.normal(size=(3, 5)))  # rank 3: semidefinite, not definite
        gram = root.T @ root
        v = solve_class_weights(g, regularization=1.0, solver="cvxpy", quadratic=gram)
        slope = 2 * gram @ v - g
        assert v.sum().item() == pytest.approx(5, abs=1e-5)
        assert (slope - slope[v > 1e-3].mean() >= -1e-3).all()
        assert slope[v > 1e-3].std() < 1e-3

    def test_quadratic_must_be_semidefinite(self) -> None:
        bad = -torch.eye(2, dtype=torch.float64)
        with pytest.raises(Exception, match=r"(?i)semidefinite|convex|DCP"):
            solve_class_weights(torch.ones(2).double(), regularization=1.0, solver="cvxpy", quadratic=bad)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"regularization": 0.0}, "regularization"),
        ({"regularization": -1.0}, "regularization"),
        ({"regularization": math.nan}, "regularization"),
        ({"regularization": 1.0, "total": 0.0}, "total"),
        ({"regularization": 1.0, "solver": "quadprog"}, "projection.*cvxpy.*quadprog"),
        ({"regularization": 1.0, "quadratic": torch.eye(3)}, "cvxpy"),
    ],
)
def test_errors(keywords: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        solve_class_weights(torch.ones(3), **keywords)  # type: ignore[arg-type]


def test_errors_of_shape_and_type() -> None:
    with pytest.raises(ValueError, match=r"\(C,\)"):
        solve(torch.ones(2, 2), 1.0)
    with pytest.raises(TypeError, match="float"):
        solve(torch.ones(3, dtype=torch.int64), 1.0)


def test_errors_of_the_general_programme() -> None:
    g = torch.ones(3)
    with pytest.raises(ValueError, match="neither"):
        solve_class_weights(g)
    with pytest.raises(ValueError, match=r"\(3, 3\).*\(2, 2\)"):
        solve_class_weights(g, solver="cvxpy", quadratic=torch.eye(2))
