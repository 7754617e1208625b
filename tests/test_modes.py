"""Every way in which torch differentiates, of small inputs and of those that the fast paths take.

At both sizes "auto" must give what the reference gives: the modes that a fast path lacks fall back to it.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cases import CORE, DEFAULTS, Case, Sample, close, over, sample
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import functional_call

from classbalance_losses import DiceLoss, DyCELoss, functional, use_backend
from classbalance_losses.ops.geometry import cosine_distance, distances

Loss = Callable[[Tensor], Tensor]
Mode = Callable[[Case, Sample], Tensor]

SMALL = sample(2, weighted=True, dtype=torch.float32, scale=1.0)
LARGE = sample(
    2, shape=(1, 257, 256), weighted=True, dtype=torch.float32, scale=1.0
)  # 2^18 logits and some more


def direction(x: Tensor) -> Tensor:
    """One that every mode goes along, of entries that a sum does not cancel."""
    return torch.linspace(-1, 2, x.numel(), dtype=x.dtype, device=x.device).view(x.shape)


def losses(case: Case, s: Sample) -> Loss:
    """Return a function of the logits with two values: the mean and the sum."""
    return lambda z: torch.stack([case(s, input=z), case(s, input=z, reduction="sum")])


def forward_mode(case: Case, s: Sample) -> Tensor:
    with forward_ad.dual_level():
        loss = case(s, input=forward_ad.make_dual(s.input, direction(s.input)))
        tangent = forward_ad.unpack_dual(loss).tangent
    assert tangent is not None
    return tangent


def forward_mode_of_pixel_weights(case: Case, s: Sample) -> Tensor:
    """Of backward's own argument, which the weights scale."""
    assert s.pixel_weight is not None
    leaf = s.leaf().input
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(()), torch.tensor(3.0))
        gradient = torch.autograd.grad(case(s, input=leaf), leaf, dual)[0]
        tangent = forward_ad.unpack_dual(gradient).tangent
    assert tangent is not None
    return tangent


def func_jvp(case: Case, s: Sample) -> Tensor:
    tangent: Tensor = torch.func.jvp(lambda z: case(s, input=z), (s.input,), (direction(s.input),))[1]
    return tangent


def func_grad(case: Case, s: Sample) -> Tensor:
    gradient: Tensor = torch.func.grad(lambda z: case(s, input=z))(s.input)
    return gradient


def func_grad_of_what_is_no_tensor_of_the_call(case: Case, s: Sample) -> Tensor:
    """While a transform is at work that the loss's own tensors know nothing of."""
    slope: Tensor = torch.func.grad(lambda scale: scale * case(s))(torch.ones(()))
    return slope


def vmap_over_labels(case: Case, s: Sample) -> Tensor:
    targets = torch.stack([s.target, s.target.flip(0, 1)])
    values: Tensor = torch.func.vmap(lambda t: case(replace(s, target=t)))(targets)
    return values


def batched_gradients(case: Case, s: Sample) -> Tensor:
    leaf = s.leaf().input
    both = losses(case, s)(leaf)
    return torch.autograd.grad(both, leaf, torch.tensor([[1.0, 0], [0, 2.0]]), is_grads_batched=True)[0]


def vmap_of_backward(case: Case, s: Sample) -> Tensor:
    leaf = s.leaf().input
    both = losses(case, s)(leaf)

    def gradient(v: Tensor) -> Tensor:
        return torch.autograd.grad(both, leaf, v, retain_graph=True)[0]

    result: Tensor = torch.func.vmap(gradient)(torch.eye(2))
    return result


def vectorized_jacobian(case: Case, s: Sample) -> Tensor:
    result: Tensor = jacobian(losses(case, s), s.input, vectorize=True)
    return result


def forward_mode_jacobian(case: Case, s: Sample) -> Tensor:
    def along(t: Tensor) -> Tensor:
        return losses(case, s)(s.input + t[0] * direction(s.input) + t[1])

    result: Tensor = jacobian(along, torch.zeros(2), vectorize=True, strategy="forward-mode")
    return result


def double_backward(case: Case, s: Sample) -> Tensor:
    leaf = s.leaf().input
    (first,) = torch.autograd.grad(case(s, input=leaf), leaf, create_graph=True)
    return torch.autograd.grad((first * direction(leaf)).sum(), leaf)[0]


def forward_over_reverse(case: Case, s: Sample) -> Tensor:
    gradient = torch.func.grad(lambda z: case(s, input=z))
    product: Tensor = torch.func.jvp(gradient, (s.input,), (direction(s.input),))[1]
    return product


class Marked(Tensor):
    """A subclass that does nothing."""


def subclass(case: Case, s: Sample) -> Tensor:
    leaf = s.input.as_subclass(Marked).requires_grad_()
    loss = case(s, input=leaf)
    assert type(loss) is Marked
    return torch.autograd.grad(loss, leaf)[0].as_subclass(Tensor)


def subclass_of_labels(case: Case, s: Sample) -> Tensor:
    leaf = s.leaf().input
    loss = case(replace(s, target=s.target.as_subclass(Marked)), input=leaf)
    return torch.autograd.grad(loss, leaf)[0].as_subclass(Tensor)


def saved_tensors_hooks(case: Case, s: Sample) -> Tensor:
    leaf = s.leaf().input
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x.clone()):
        loss = case(s, input=leaf)
    return torch.autograd.grad(loss, leaf)[0]


MODES: list[Mode] = [
    forward_mode,
    forward_mode_of_pixel_weights,
    func_jvp,
    func_grad,
    func_grad_of_what_is_no_tensor_of_the_call,
    vmap_over_labels,
    batched_gradients,
    vmap_of_backward,
    vectorized_jacobian,
    forward_mode_jacobian,
    double_backward,
    forward_over_reverse,
    subclass,
    subclass_of_labels,
    saved_tensors_hooks,
]


IN_EACH = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__)


def check(mode: Mode, case: Case, s: Sample) -> None:
    with use_backend("reference"):
        expected = mode(case, s)
    close(mode(case, s), expected.detach().numpy(), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@over(CORE)
@IN_EACH
def test_small_inputs(mode: Mode, case: Case) -> None:
    check(mode, case, SMALL)


@over(DEFAULTS)
@IN_EACH
def test_large_inputs(mode: Mode, case: Case) -> None:
    check(mode, case, LARGE)


@over(DEFAULTS)
@pytest.mark.filterwarnings("ignore:Attempted to insert")
def test_linearized(case: Case) -> None:
    """By make_fx, which records what runs."""
    along = direction(SMALL.input)
    tangent = torch.func.linearize(lambda z: case(SMALL, input=z), SMALL.input)[1](along)
    close(tangent, func_jvp(case, SMALL).numpy(), rtol=1e-5, atol=1e-7)


@over([case for case in DEFAULTS if case.loss != "DyCELoss"])  # the tracer knows no view as another dtype
@pytest.mark.filterwarnings("ignore")
def test_a_traced_loss_is_one_of_any_logits(case: Case) -> None:
    """What the compiled loops write is no constant of the program."""
    traced = torch.jit.trace(
        lambda z, target: case(replace(LARGE, input=z, target=target)),
        (LARGE.input, LARGE.target),
        check_trace=False,
    )
    others = LARGE.input.flip(2) * 2, LARGE.target.flip(1)
    expected = case(replace(LARGE, input=others[0], target=others[1]))
    close(traced(*others), expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize("what", ["distances", "cosine distance"])
def test_functions_of_features(what: str) -> None:
    """Those of the losses on features that look at all pairs, or at whole maps."""
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(*((128, 80) if what == "distances" else (2, 16, 64, 64)), generator=draw)
    others, keep = vectors.flip(0), torch.ones(2, 64, 64, dtype=torch.bool)

    def both(x: Tensor) -> Tensor:
        value = distances(x) if what == "distances" else cosine_distance(x, others, keep)
        return torch.stack([value.sum(), value.square().sum()])

    def derivatives() -> tuple[Tensor, Tensor]:
        leaf = vectors.clone().requires_grad_()
        several = torch.autograd.grad(both(leaf), leaf, torch.eye(2), is_grads_batched=True)[0]
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(both(forward_ad.make_dual(vectors, others))).tangent
        assert tangent is not None
        return several, tangent

    with use_backend("reference"):
        expected = derivatives()
    for ours, theirs in zip(derivatives(), expected, strict=True):
        close(ours, theirs.numpy(), rtol=1e-4, atol=1e-4)


def test_functional_call() -> None:
    """A network and its loss as a function of both their parameters, and the gradient of it."""
    model = nn.Conv2d(4, 4, 1)

    class Objective(nn.Module):
        def __init__(self, case: Case) -> None:
            super().__init__()
            self.model, self.loss = model, case.build(LARGE)

        def forward(self, s: Sample) -> Tensor:
            result: Tensor = self.loss(self.model(s.input), s.target)
            return result

    names, values = zip(*model.named_parameters(), strict=True)
    for case in (row for row in DEFAULTS if row.constant):
        objective = Objective(case)
        expected = torch.autograd.grad(objective(LARGE), values)

        def value(*parameters: Tensor, objective: nn.Module = objective) -> Tensor:
            named = {f"model.{name}": p for name, p in zip(names, parameters, strict=True)}
            result: Tensor = functional_call(objective, named, (LARGE,))
            return result

        moved = [p.detach().clone().requires_grad_() for p in values]
        for ours, theirs in zip(torch.autograd.grad(value(*moved), moved), expected, strict=True):
            close(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(torch.func.grad(value, argnums=(0, 1))(*values), expected, strict=True):
            close(ours, theirs.numpy(), rtol=1e-3, atol=1e-5)


def test_a_sum_after_a_transform_can_be_copied() -> None:
    """What vmap wraps is of no use after it: it is not kept."""
    s = sample(2, 4, dtype=torch.float32)
    loss = DyCELoss() + DiceLoss()
    loss(s.input, s.target)
    before = dict(loss.terms)
    both = torch.stack([s.input, s.input.flip(0)])
    torch.func.vmap(lambda z: loss(z, s.target))(both)
    torch.func.grad(lambda z: loss(z, s.target))(s.input)
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert copied.terms == before


def of_inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


@pytest.mark.parametrize(
    ("case", "size"),
    [
        *(pytest.param(case, SMALL, id=f"{case.id}-small") for case in CORE),
        *(pytest.param(case, LARGE, id=f"{case.id}-large") for case in DEFAULTS[:2]),
    ],
)
def test_labels_and_weights_made_in_inference_mode(case: Case, size: Sample) -> None:
    """As a teacher makes them; the loss itself, too, may have been built there."""
    here = size.leaf()
    made = replace(
        here, **{k: of_inference(v) for k, v in vars(here).items() if k not in ("input", "ignore_index")}
    )
    with torch.inference_mode():
        module = case.build(here)
    expected = torch.autograd.grad(case(here), here.input)[0]
    for loss in (case(made), case.by_module(made, module)):
        assert torch.equal(torch.autograd.grad(loss, here.input)[0], expected)


def test_soft_labels_and_masks_made_in_inference_mode() -> None:
    """Of the losses on features the teacher's maps, too."""
    leaf = SMALL.leaf().input
    share, mask, weight = leaf.softmax(1), torch.rand(leaf.shape[:1] + leaf.shape[2:]) < 0.5, torch.rand(4)
    calls: list[Callable[..., Tensor]] = [
        lambda share, mask, weight: functional.dice_loss(leaf, share),
        lambda share, mask, weight: functional.weighted_cross_entropy_loss(
            leaf, share, weight, label_smoothing=0.1
        ),
        lambda share, mask, weight: functional.dyce_loss(leaf, share),
        lambda share, mask, weight: functional.entropy_loss(
            leaf, weight, mask=mask, pixel_weight=share[:, 0]
        ),
        lambda share, mask, weight: functional.masked_consistency_loss(leaf, share, mask),
        lambda share, mask, weight: functional.text_alignment_loss(
            leaf, torch.eye(4), SMALL.target * 0, mask=mask
        ),
    ]
    for call in calls:
        expected = torch.autograd.grad(call(share.detach(), mask, weight), leaf)[0]
        ours = call(*map(of_inference, (share.detach(), mask, weight)))
        assert torch.equal(torch.autograd.grad(ours, leaf)[0], expected)
