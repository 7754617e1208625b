"""The entropy of predictions without labels: loops in float64, GBW's gradients by autograd, what changes nothing."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed_worker import leave_group
from processes import start_ranks
from pull_cases import no_value_checks  # noqa: F401
from test_no_sync import NoSync
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from classbalance_losses import EntropyLoss
from classbalance_losses.functional import entropy_gradient_norms, entropy_loss, solve_class_weights

N, C, SIZE = 3, 4, (2, 5)
WEIGHT = [0.5, 2.0, 0.0, 1.5]
READINGS = ("pixel_mean", "class_logits", "bias", "loss")
WEIGHTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "numbers": {"weight": WEIGHT},
    **{f"gbw-{name}": {"weight": "gbw", "gradient": name, "regularization": 0.02} for name in READINGS},
}
over_weights = pytest.mark.parametrize("options", WEIGHTS.values(), ids=WEIGHTS)


def logits(dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (N, C, *SIZE)) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * 2).to(dtype).requires_grad_()


def region() -> dict[str, Tensor]:
    """A mask, and weights of pixels that are NaN where it hides them."""
    mask = torch.rand(N, *SIZE) < 0.7
    weight = torch.rand(N, *SIZE, dtype=torch.float64) * 2
    return {"mask": mask, "pixel_weight": torch.where(mask, weight, math.nan)}


def gradient(x: Tensor, **options: Any) -> Tensor:
    return torch.autograd.grad(entropy_loss(x, **options).sum(), x)[0]


def loops(x: Tensor, weight: list[float], reduction: str, mask: Tensor, pixel_weight: Tensor) -> Any:
    """The loss and its gradient pixel by pixel: dL/dz_k = p_k (a_k - Σ p a), with a_k = -v_k (1 + log p_k)."""
    terms, slopes, number = torch.zeros_like(pixel_weight), torch.zeros_like(x), 0
    for place in (tuple(at) for at in mask.nonzero().tolist()):
        z = x[(place[0], slice(None), *place[1:])].tolist()
        total = sum(map(math.exp, z))
        p, q = [math.exp(value) / total for value in z], float(pixel_weight[place])
        terms[place] = sum(-v * q * pk * math.log(pk) for v, pk in zip(weight, p, strict=True))
        a = [-v * q * (1 + math.log(pk)) for v, pk in zip(weight, p, strict=True)]
        mean = sum(ak * pk for ak, pk in zip(a, p, strict=True))
        slopes[(place[0], slice(None), *place[1:])] = torch.tensor(
            [pk * (ak - mean) for ak, pk in zip(a, p, strict=True)], dtype=torch.float64
        )
        number += 1
    scale = 1 / number if reduction == "mean" else 1
    return (terms if reduction == "none" else terms.sum() * scale), slopes * scale


@over_weights
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("masked", [True, False])
def test_value_and_gradient_equal_the_loops(options: dict[str, Any], reduction: str, masked: bool) -> None:
    x, given = logits(), region() if masked else {}
    whole = torch.ones(N, *SIZE, dtype=torch.float64)
    weight = [1.0] * C if not options else WEIGHT
    if options.get("weight") == "gbw":
        norms = entropy_gradient_norms(x, gradient=options["gradient"], **given)
        weight = solve_class_weights(norms, regularization=0.02).tolist()
        assert len(set(weight)) == C
    mask, q = given.get("mask", whole.bool()), given.get("pixel_weight", whole)
    value, slopes = loops(x.detach(), weight, reduction, mask, q)
    torch.testing.assert_close(entropy_loss(x, reduction=reduction, **options, **given).detach(), value)
    torch.testing.assert_close(gradient(x, reduction=reduction, **options, **given), slopes)


def by_autograd(x: Tensor, reading: str, mask: Tensor, pixel_weight: Tensor) -> Tensor:
    """What a reading says, from torch's own gradients of each class's term and pixel."""
    p, number = x.softmax(1), int(mask.sum())
    h = -p * p.log() * torch.where(mask, pixel_weight, 0).unsqueeze(1)
    means = h.sum([0, *range(2, h.ndim)]) / number
    if reading == "loss":
        return means.detach()
    slopes = [torch.autograd.grad(mean, x, retain_graph=True)[0] for mean in means]
    if reading == "bias":
        return torch.stack([slope.sum([0, *range(2, h.ndim)]).square().sum() for slope in slopes])
    norms = torch.stack([slope.square().sum() for slope in slopes])  # ‖∇ of the mean‖²: each pixel has 1/N
    return norms if reading == "class_logits" else norms * number


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("masked", [True, False])
def test_the_norms_are_autograds(reading: str, masked: bool) -> None:
    x, whole = logits(), torch.ones(N, *SIZE, dtype=torch.float64)
    given = region() if masked else {"mask": whole.bool(), "pixel_weight": whole}
    found = entropy_gradient_norms(x, gradient=reading, **(given if masked else {}))
    torch.testing.assert_close(found, by_autograd(x, reading, **given))
    assert not found.requires_grad


def test_no_norm_exceeds_what_the_page_says() -> None:
    """Two classes and 0.715 are the worst: all that is not in a class is in one other."""
    p = torch.linspace(1e-6, 1 - 1e-6, 20_001, dtype=torch.float64)
    each = [
        entropy_gradient_norms(torch.stack([share, 1 - share])[None].log())[0] for share in p[::20].unbind()
    ]
    worst = torch.stack(each)
    assert 0.0365 < worst.max() < 0.037
    assert p[::20][worst.argmax()] == pytest.approx(0.715, abs=2e-3)
    assert entropy_gradient_norms(logits(shape=(50, 19, 20))).max() < worst.max()


def test_weights_of_gbw_stay_near_one_at_the_papers_lambda() -> None:
    """Where one class's norm is the largest there is, and those of all but one are 0; some hundredths move them."""
    p = torch.full((1, 19), 1e-12, dtype=torch.float64)
    p[0, :2] = torch.tensor([0.715, 0.285], dtype=torch.float64)
    norms = entropy_gradient_norms(p.log())
    far = {value: (solve_class_weights(norms, regularization=value) - 1).abs().max() for value in (1.0, 0.02)}
    assert 0.017 < far[1.0] < 0.02
    assert 0.8 < far[0.02] < 1


@pytest.mark.parametrize("options", [{"weight": [1.0] * C}, {"weight": "gbw", "regularization": math.inf}])
def test_equal_weights_give_the_plain_entropy(options: dict[str, Any]) -> None:
    x = logits()
    plain = torch.distributions.Categorical(logits=x.movedim(1, -1)).entropy()
    for reduction, value in {"none": plain, "sum": plain.sum(), "mean": plain.mean()}.items():
        torch.testing.assert_close(entropy_loss(x, reduction=reduction), value)
        torch.testing.assert_close(entropy_loss(x, reduction=reduction, **options), value)
    torch.testing.assert_close(gradient(x, **options), gradient(x))


def test_it_is_largest_where_nothing_is_known_and_zero_where_all_is() -> None:
    torch.testing.assert_close(entropy_loss(torch.zeros(2, C, 3)).item(), math.log(C))
    assert entropy_loss(torch.eye(C).mul(1e4)).item() == 0
    assert not gradient(torch.eye(C).mul(1e4).requires_grad_(), weight="gbw").any()


@over_weights
def test_gradcheck(options: dict[str, Any]) -> None:
    """With weights of the module's own as constants: GBW's move with the logits, and have no gradient."""
    x, given = logits(), region()
    weight = options.get("weight")
    if weight == "gbw":
        norms = entropy_gradient_norms(x, gradient=options["gradient"], **given)
        weight = solve_class_weights(norms, regularization=0.02)
        torch.testing.assert_close(gradient(x, **options, **given), gradient(x, weight=weight, **given))
    q = torch.where(given["mask"], given["pixel_weight"], 1).requires_grad_()

    def loss(z: Tensor, q: Tensor) -> Tensor:
        return entropy_loss(z, weight, mask=given["mask"], pixel_weight=q)

    assert torch.autograd.gradcheck(loss, (x, q))
    assert torch.autograd.gradgradcheck(loss, (x, q), fast_mode=True)


@over_weights
def test_pixels_outside_the_mask_are_as_if_they_were_not(options: dict[str, Any]) -> None:
    x, given = logits(), region()
    mask, q = given["mask"], given["pixel_weight"]
    kept = x.detach().movedim(1, -1)[mask].requires_grad_()  # (pixels, C)
    torch.testing.assert_close(
        entropy_loss(x, **given, **options), entropy_loss(kept, pixel_weight=q[mask], **options)
    )
    hidden = torch.where(mask.unsqueeze(1), x.detach(), math.nan).requires_grad_()
    torch.testing.assert_close(entropy_loss(hidden, **given, **options), entropy_loss(x, **given, **options))
    slopes = gradient(hidden, **given, **options)
    torch.testing.assert_close(slopes, gradient(x, **given, **options))
    assert not slopes.movedim(1, -1)[~mask].any()
    terms = entropy_loss(hidden, reduction="none", **given, **options)
    assert not terms[~mask].any()


@over_weights
def test_without_pixels_it_is_zero_in_the_graph(options: dict[str, Any]) -> None:
    for x, given in (
        (logits(), {"mask": torch.zeros(N, *SIZE, dtype=torch.bool)}),
        (logits(shape=(0, C, 3)), {}),
    ):
        value = entropy_loss(x, **options, **given)
        assert value.item() == 0
        assert not torch.autograd.grad(value, x)[0].any()


@over_weights
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_that_cannot_be_adds_nothing(options: dict[str, Any], dtype: torch.dtype) -> None:
    """A logit of -inf, and one whose probability underflows: finite, and the limit of small probabilities."""
    x = logits(dtype).detach()
    for value in (-math.inf, -1e4, -200.0):
        far = x.clone()
        far[:, 1] = value
        far[0, 2:] = value  # one class is left
        found = entropy_loss(far.requires_grad_(), **options)
        assert found.isfinite()
        slopes = gradient(far, **options)
        assert slopes.isfinite().all()
        assert not slopes[:, 1].abs().gt(1e-30).any()
        rest = torch.cat([far[:, :1], far[:, 2:]], 1).detach()
        if not options:
            torch.testing.assert_close(found, entropy_loss(rest))
    assert entropy_gradient_norms(far, gradient="pixel_mean")[1] < 1e-30


@over_weights
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(options: dict[str, Any], half: torch.dtype) -> None:
    x, given = logits(half), {k: v.to(half) if k == "pixel_weight" else v for k, v in region().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = entropy_loss(x, **options, **given)
        norms = entropy_gradient_norms(x, gradient="bias")
    assert value.dtype == norms.dtype == torch.float32
    wide = {k: v.float() if k == "pixel_weight" else v for k, v in given.items()}
    torch.testing.assert_close(value, entropy_loss(x.float(), **options, **wide))
    torch.testing.assert_close(norms, entropy_gradient_norms(x.float(), gradient="bias"))
    slopes = gradient(x, **options, **given)
    assert slopes.dtype == half
    assert entropy_loss(logits(torch.float64), **options).dtype == torch.float64


@over_weights
@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_space_classes_and_shifts(options: dict[str, Any], axes: int) -> None:
    """Any number of axes; the order of pixels and classes, strides and a constant on a pixel's logits do not matter."""
    x = logits(shape=(6, C, *(2, 3, 2)[:axes]))
    value, slopes = entropy_loss(x, **options), gradient(x, **options)
    flat = x.detach().movedim(1, -1).reshape(-1, C)[torch.randperm(6 * math.prod((2, 3, 2)[:axes]))]
    torch.testing.assert_close(entropy_loss(flat, **options), value)
    order = torch.randperm(C)
    moved = dict(options)
    if isinstance(moved.get("weight"), list):
        moved["weight"] = torch.tensor(WEIGHT, dtype=torch.float64)[order]
    torch.testing.assert_close(entropy_loss(x[:, order], **moved), value)
    torch.testing.assert_close(gradient(x.detach()[:, order].requires_grad_(), **moved), slopes[:, order])
    strided = x.detach().transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(entropy_loss(strided, **options), value)
    torch.testing.assert_close(entropy_loss(x + torch.randn_like(x[:, :1]) * 100, **options), value)
    torch.testing.assert_close(slopes.sum(1), torch.zeros_like(slopes[:, 0]))


@over_weights
def test_the_module_is_the_function(options: dict[str, Any]) -> None:
    x, given, module = logits(), region(), EntropyLoss(**options)
    torch.testing.assert_close(module(x, **given), entropy_loss(x, **options, **given), rtol=0, atol=0)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(again(x, **given), module(x, **given), rtol=0, atol=0)
        assert repr(again) == repr(module)
    has_numbers = isinstance(options.get("weight"), list)
    loaded = EntropyLoss(**({"weight": torch.zeros(C)} if has_numbers else options))
    loaded.load_state_dict(module.state_dict())
    torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
    assert set(module.state_dict()) == ({"weight"} if has_numbers else set())


def test_weights_may_be_learnt_by_the_function() -> None:
    x, weight = logits(), torch.tensor(WEIGHT, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(entropy_loss(x, weight), weight)[0]
    torch.testing.assert_close(slope, entropy_gradient_norms(x, gradient="loss"))  # each class's mean entropy


def test_module_and_function_have_the_same_options() -> None:
    options = inspect.signature(EntropyLoss.__init__).parameters
    call = inspect.signature(EntropyLoss.forward).parameters
    function = inspect.signature(entropy_loss).parameters
    assert {k: p.default for k, p in options.items() if k != "self"} == {
        k: p.default for k, p in function.items() if k not in call
    }


@over_weights
def test_compile_and_functional_transforms(options: dict[str, Any]) -> None:
    x = logits()
    compiled = torch.compile(EntropyLoss(**options), backend="aot_eager", fullgraph=True)
    value = compiled(x)
    torch.testing.assert_close(value, entropy_loss(x, **options))
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], gradient(x, **options))

    def of_one(z: Tensor) -> Tensor:
        return entropy_loss(z, **options)

    torch.testing.assert_close(torch.func.grad(of_one)(x.detach()), gradient(x, **options))
    many = torch.stack([x.detach(), x.detach() + 1])
    torch.testing.assert_close(torch.func.vmap(of_one)(many), torch.stack([of_one(z) for z in many]))


@over_weights
@pytest.mark.usefixtures("no_value_checks")
def test_nothing_waits_for_the_device(options: dict[str, Any]) -> None:
    x, given = logits(), region()
    with NoSync():
        entropy_loss(x, **options, **given).backward()


@over_weights
def test_no_value_is_read(options: dict[str, Any]) -> None:
    x, given = logits().detach(), region()
    with FakeTensorMode() as fake:
        held = {name: fake.from_tensor(part) for name, part in given.items()}
        assert entropy_loss(fake.from_tensor(x), **options, **held).shape == ()


# Over ranks


def shares() -> list[dict[str, Tensor]]:
    """Two ranks' images, of uneven number."""
    torch.manual_seed(5)
    whole = {"input": logits().detach(), **region()}
    return [{name: part[images] for name, part in whole.items()} for images in (slice(0, 1), slice(1, N))]


def _rank(own: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=own, world_size=2)
    share, out = shares()[own], {}
    share["input"].requires_grad_()
    for (name, options), reduction in product(WEIGHTS.items(), ("sum", "mean")):
        module = EntropyLoss(**options, reduction=reduction, process_group="world")
        value = module(**share)
        out[name, reduction] = value.detach(), torch.autograd.grad(value, share["input"])[0]
    with torch.no_grad():  # one rank alone may validate
        out["alone"] = module(**share) if own == 0 else None
    torch.save(out, f"{folder}/{own}.pt")
    leave_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    start_ranks(_rank, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{own}.pt") for own in range(2)]
    whole = {name: torch.cat([share[name] for share in shares()]) for name in shares()[0]}
    x = whole.pop("input").requires_grad_()
    for (name, options), reduction in product(WEIGHTS.items(), ("sum", "mean")):
        value = entropy_loss(x, reduction=reduction, **options, **whole)
        for rank in ranks:
            torch.testing.assert_close(rank[name, reduction][0], value.detach())
        joined = torch.cat([rank[name, reduction][1] for rank in ranks]) / 2  # DistributedDataParallel's mean
        torch.testing.assert_close(joined, torch.autograd.grad(value, x)[0])


# Errors

MAP = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: entropy_loss(MAP.numpy()), TypeError, "input to be a torch.Tensor"),
        (lambda: entropy_loss(MAP.long()), TypeError, "input of a floating-point dtype"),
        (lambda: entropy_loss(MAP[0, :, 0]), ValueError, r"input.unsqueeze\(0\)"),
        (
            lambda: entropy_loss(MAP[:, :1]),
            ValueError,
            r"torch.cat\(\[torch.zeros_like\(input\), input\], 1\)",
        ),
        (lambda: entropy_loss(MAP, "gwb"), ValueError, "weight to be one of 'gbw'"),
        (lambda: entropy_loss(MAP, [1.0, 2.0]), ValueError, r"weight of shape \(3,\)"),
        (lambda: entropy_loss(MAP, [1.0, -2.0, 1.0]), ValueError, "non-negative weight"),
        (lambda: entropy_loss(MAP, "gbw", regularization=0.0), ValueError, "regularization"),
        (lambda: entropy_loss(MAP, "gbw", gradient="official"), ValueError, "gradient to be one of"),
        (lambda: entropy_loss(MAP, reduction="all"), ValueError, "reduction"),
        (lambda: entropy_loss(MAP, process_group="all"), ValueError, "process_group"),
        (lambda: entropy_loss(MAP, mask=MAP[:, 0]), TypeError, r"mask of dtype torch.bool.*\.bool\(\)"),
        (lambda: entropy_loss(MAP, mask=MAP.bool()), ValueError, r"mask of shape \(2, 4\)"),
        (lambda: entropy_loss(MAP, pixel_weight=MAP), ValueError, r"pixel_weight of shape \(2, 4\)"),
        (lambda: entropy_loss(MAP, pixel_weight=MAP[:, 0] - 1), ValueError, r"pixel_weight.clamp\(min=0\)"),
        (lambda: entropy_loss(MAP, pixel_weight=MAP[:, 0].long()), TypeError, "pixel_weight of a floating"),
        (lambda: entropy_gradient_norms(MAP, gradient="official"), ValueError, "gradient to be one of"),
        (lambda: entropy_gradient_norms(MAP[:, 0, 0]), ValueError, r"shape \(N, C, \*\)"),
        (lambda: EntropyLoss("mean"), ValueError, "weight to be one of 'gbw'"),
        (lambda: EntropyLoss([[1.0, 2.0]]), TypeError, "weight to be a tensor"),
        (lambda: EntropyLoss(regularization=-1.0), ValueError, "regularization"),
        (lambda: EntropyLoss(gradient="logits"), ValueError, "gradient"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
