"""Theorems that tie the losses to each other and to cross-entropy (each is derived in the documentation)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import Sample, close, sample
from hypothesis import given
from hypothesis import strategies as st
from strategies import samples
from torch import Tensor

from classbalance_losses.functional import (
    dual_cross_entropy_loss,
    dual_focal_loss,
    dyce_loss,
    focal_loss,
    gbw_loss,
    weighted_cross_entropy_loss,
)

INF = float("inf")


def present(s: Sample) -> Tensor:
    """n_c of all classes."""
    return torch.tensor(s.batch().class_counts(), dtype=torch.float64)


def class_means(s: Sample) -> Tensor:
    """m_c of the classes that occur."""
    loss = F.cross_entropy(s.input, s.target, ignore_index=s.ignore_index, reduction="none")
    return torch.stack([loss[s.target == c].mean() for c in present(s).nonzero().flatten()])


def plain(s: Sample) -> Sample:
    return replace(s, pixel_weight=None)


# DyCE ---------------------------------------------------------------------------------------------------------------


@given(samples(), st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_dyce_is_the_sum_of_class_means_times_shares(drawn: Sample, fraction: float) -> None:
    """The canonical form: L = sum_c pi_c^omega m_c over the classes of H."""
    s = plain(drawn)
    hard = (
        dyce_loss(
            s.input,
            s.target,
            omega=1.0,
            hard_fraction=fraction,
            ignore_index=s.ignore_index,
            reduction="none",
        )
        > 0
    )
    inside = replace(s, target=s.target.masked_fill(~hard, s.ignore_index))
    if not hard.any():
        return
    shares = present(inside)[present(inside) > 0] / hard.sum()
    for omega in (0.0, 0.3, 1.0):
        value = dyce_loss(s.input, s.target, omega=omega, hard_fraction=fraction, ignore_index=s.ignore_index)
        close(value, (shares**omega * class_means(inside)).sum().item())


@given(samples(), st.sampled_from([0.1, 0.4, 1.0]))
def test_dyce_falls_with_omega_between_its_bounds(s: Sample, fraction: float) -> None:
    common = {"hard_fraction": fraction, "ignore_index": s.ignore_index, "pixel_weight": s.pixel_weight}
    values = [
        dyce_loss(s.input, s.target, omega=omega, **common).item() for omega in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values))


def test_dyce_omega_0_is_k_times_weighted_cross_entropy() -> None:
    """h = 1, omega = 0: the sum of class means, K times F.cross_entropy with weights N / (C n_c)."""
    s = sample(2)
    count = present(s)
    weight = torch.where(count > 0, count.sum() / (s.num_classes * count.clamp(min=1)), 0)
    value = dyce_loss(s.input, s.target, omega=0.0, hard_fraction=1.0)
    close(value, class_means(s).sum().item())
    close(value, ((count > 0).sum() * F.cross_entropy(s.input, s.target, weight=weight)).item())
    close(value, ((count > 0).sum() * weighted_cross_entropy_loss(s.input, s.target, weight)).item())
    close(value, gbw_loss(s.input, s.target, regularization=INF, apply="class").item())


@pytest.mark.parametrize("omega", [0.0, 0.2, 0.5, 1.0])
def test_dyce_of_one_class_is_the_mean_over_h(omega: float) -> None:
    s = sample(2, ignored=0.0)
    target = torch.ones_like(s.target)
    loss = F.cross_entropy(s.input, target, reduction="none").flatten().sort(descending=True).values
    k = int(0.3 * loss.numel())
    close(dyce_loss(s.input, target, omega=omega, hard_fraction=0.3), loss[:k].mean().item())


@pytest.mark.parametrize("omega", [0.0, 0.2, 0.5, 1.0])
def test_dyce_of_balanced_classes_is_a_power_of_k_times_cross_entropy(omega: float) -> None:
    logits = torch.randn(3, 5, 5, dtype=torch.float64)
    target = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 4, 2, 3]])
    value = dyce_loss(logits, target, omega=omega, hard_fraction=1.0)
    close(value, 5 ** (1 - omega) * F.cross_entropy(logits, target).item())


@given(samples(), st.sampled_from([0.0, 0.5, 1.0]), st.integers(2, 3))
def test_dyce_of_a_replicated_batch_is_the_same(drawn: Sample, omega: float, times: int) -> None:
    s = plain(drawn)
    again = [torch.cat([x] * times) for x in (s.input, s.target)]
    common = {"omega": omega, "hard_fraction": 1.0, "ignore_index": s.ignore_index}
    close(dyce_loss(*again, **common), dyce_loss(s.input, s.target, **common).item())


def test_dyce_weights_are_max_squares_image_weights() -> None:
    """h = 1: each pixel's coefficient is 1 / (n_c^a N^(1-a)) with a = 1 - omega."""
    s = sample(2)
    count, loss = present(s), F.cross_entropy(s.input, s.target, reduction="none")
    factor = 1 / (count ** (1 - 0.8) * count.sum() ** 0.8)
    expected = sum(factor[c] * loss[s.target == c].sum() for c in range(s.num_classes) if count[c])
    close(dyce_loss(s.input, s.target, omega=0.8, hard_fraction=1.0), expected.item())


@given(samples(), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.3, 1.0]))
def test_dyce_unit_is_an_average_of_the_losses_in_h(drawn: Sample, fraction: float, omega: float) -> None:
    """So its scale is cross-entropy's, and with equal losses it is that loss."""
    s = plain(drawn)
    common = {"hard_fraction": fraction, "ignore_index": s.ignore_index}
    kept = dyce_loss(s.input, s.target, omega=1.0, reduction="none", **common)
    value = dyce_loss(s.input, s.target, omega=omega, normalize="unit", **common)
    if s.valid.any():
        inside = kept[kept > 0]
        assert inside.min() - 1e-12 <= value <= inside.max() + 1e-12
        flat = dyce_loss(torch.zeros_like(s.input), s.target, omega=omega, normalize="unit", **common)
        close(flat, torch.tensor(float(s.num_classes)).double().log().item())


def test_dyce_gradient_is_zero_off_h() -> None:
    s = sample(2).leaf()
    pixel = dyce_loss(s.input, s.target, hard_fraction=0.3, reduction="none")
    (gradient,) = torch.autograd.grad(pixel.sum(), s.input)
    assert torch.equal(gradient.abs().sum(1) > 0, pixel > 0)


def test_dyce_image_scope_mines_every_image() -> None:
    """An easy image and a hard one: the batch's H takes all from the hard one, the image scope takes from both."""
    logits = torch.randn(2, 4, 10, dtype=torch.float64)
    target = torch.randint(4, (2, 10))
    logits[0].scatter_add_(0, target[:1], torch.full((1, 10), 20.0, dtype=torch.float64))
    for scope, kept in (("batch", [0, 6]), ("image", [3, 3])):
        pixel = dyce_loss(logits, target, hard_fraction=0.3, scope=scope, reduction="none")
        assert (pixel > 0).sum(1).tolist() == kept


# GBW ----------------------------------------------------------------------------------------------------------------


def test_gbw_without_pull_is_cross_entropy_or_class_means() -> None:
    s = sample(2)
    close(gbw_loss(s.input, s.target, regularization=INF), F.cross_entropy(s.input, s.target).item())
    close(gbw_loss(s.input, s.target, regularization=INF, apply="class"), class_means(s).sum().item())
    close(
        gbw_loss(s.input, s.target, regularization=1e9), F.cross_entropy(s.input, s.target).item(), rtol=1e-7
    )


def test_gbw_with_a_small_regularization_trains_the_steepest_class_alone() -> None:
    s = sample(2, ignored=0.0)
    pixel = gbw_loss(s.input, s.target, regularization=1e-9, reduction="none")
    assert len(s.target[pixel > 0].unique()) == 1
    only = pixel > 0
    close(pixel[only], (4 * F.cross_entropy(s.input, s.target, reduction="none"))[only].numpy())


# The per-pixel family -----------------------------------------------------------------------------------------------


@given(samples(), st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_focal_is_cross_entropy_times_its_modulator(drawn: Sample, gamma: float) -> None:
    s = plain(drawn)
    loss = F.cross_entropy(s.input, s.target, ignore_index=s.ignore_index, reduction="none")
    expected = (1 - torch.exp(-loss)) ** gamma * loss
    close(
        focal_loss(s.input, s.target, gamma=gamma, ignore_index=s.ignore_index, reduction="none"),
        expected.numpy(),
        atol=1e-9,
    )


def test_focal_scalar_alpha_is_a_scale_and_a_vector_is_a_class_weight() -> None:
    s = sample(2)
    close(focal_loss(s.input, s.target, alpha=0.25), 0.25 * focal_loss(s.input, s.target).item())
    vector = torch.tensor([0.5, 1.0, 2.0, 4.0])
    expected = vector[s.target.clamp(min=0)] * focal_loss(s.input, s.target, reduction="none")
    close(focal_loss(s.input, s.target, alpha=vector, reduction="none"), expected.numpy())
    close(focal_loss(s.input, s.target, alpha=[0.5, 1.0, 2.0, 4.0], reduction="none"), expected.numpy())
    close(
        focal_loss(s.input, s.target, alpha=vector, gamma=0.0, reduction="sum"),
        F.cross_entropy(s.input, s.target, weight=vector.double(), reduction="sum").item(),
    )


def test_dual_focal_identities() -> None:
    s = sample(2)
    prob = torch.softmax(s.input, 1)
    one_hot = F.one_hot(s.target.clamp(min=0), 4).movedim(-1, 1).double()
    binary = F.binary_cross_entropy(prob, one_hot, reduction="none").sum(1)
    close(
        dual_focal_loss(s.input, s.target, alpha=0.0, reduction="none"),
        torch.where(s.valid, binary, 0).numpy(),
    )
    miss = torch.where(s.valid, 1 - (prob * one_hot).sum(1), 0)
    extra = dual_focal_loss(s.input, s.target, alpha=1.5, beta=0.0, reduction="none")
    extra = extra - F.cross_entropy(s.input, s.target, reduction="none")
    close(extra, (2 * 1.5 * miss).numpy())  # gamma = 1: the alpha term is 2 alpha (1 - p_y), and it is added
    perfect = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    close(dual_focal_loss(perfect, torch.tensor([0])), 0.0, atol=1e-12)


def test_dual_focal_of_two_classes_is_twice_cross_entropy() -> None:
    s = sample(2, 2)
    close(dual_focal_loss(s.input, s.target, alpha=0.0), 2 * F.cross_entropy(s.input, s.target).item())


@given(samples())
def test_dual_losses_are_bounded_as_derived(drawn: Sample) -> None:
    s = plain(drawn)
    loss = F.cross_entropy(s.input, s.target, ignore_index=s.ignore_index, reduction="none")
    assert (
        dual_focal_loss(s.input, s.target, ignore_index=s.ignore_index, reduction="none") >= loss - 1e-12
    ).all()
    regulariser = (
        dual_cross_entropy_loss(s.input, s.target, beta=1.0, ignore_index=s.ignore_index, reduction="none")
        - loss
    )
    miss = 1 - torch.exp(-loss)
    assert (regulariser <= miss + 1e-12).all()
    assert (regulariser >= miss * torch.log(torch.tensor(2.0, dtype=torch.float64)) - 1e-12).all()


@given(samples(), st.sampled_from(["weights", "pixels"]))
def test_weighted_cross_entropy_scale(drawn: Sample, normalize: str) -> None:
    """A common factor of all weights cancels against the sum of weights, and scales the mean over pixels."""
    s = plain(drawn)
    weight = torch.arange(1.0, s.num_classes + 1).double()
    one, ten = (
        weighted_cross_entropy_loss(s.input, s.target, w, normalize=normalize, ignore_index=s.ignore_index)
        for w in (weight, 10 * weight)
    )
    close(ten, (1 if normalize == "weights" else 10) * one.item())


def test_weighted_cross_entropy_with_the_batchs_own_inverse_frequency() -> None:
    """With every class present both normalisations agree, and equal the mean of the class means."""
    s = sample(1, shape=(4, 16))
    count = present(s)
    assert (count > 0).all()
    weight = count.sum() / (s.num_classes * count)
    for normalize in ("weights", "pixels"):
        close(
            weighted_cross_entropy_loss(s.input, s.target, weight, normalize=normalize),
            class_means(s).mean().item(),
        )
