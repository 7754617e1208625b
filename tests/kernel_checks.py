"""What the tests of the kernels share: where they run, exact answers in float64, and how far off is too far."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Labels, Logits, Resize
from classbalance_losses.kernels.forms.reference import Form

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device")
WARNINGS = [
    # The interpreter of Triton 3.2, on numpy 1: a loop's bounds are arrays of one element.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    # Logits may be infinite, and what is selected away anything: the interpreter's numpy warns of it.
    pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning"),
    # torch's compiler makes one where it traces an autograd.Function.
    pytest.mark.filterwarnings(
        "ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning"
    ),
]
marks = [pytest.mark.usefixtures("poisoned"), *WARNINGS]
# (logits, labels) -> values with their graph, and squared errors, which may be absent
Loss = Callable[[Tensor, Labels], tuple[Tensor, Tensor | None]]


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh buffers hold NaN, so that an element which a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def labels(shape: tuple[int, ...], num_classes: int, dtype: torch.dtype = torch.int64) -> Labels:
    """Labels, of which a quarter are to be ignored."""
    target = torch.randint(min(num_classes, torch.iinfo(dtype).max), shape)
    ignore_index = 255 if dtype == torch.uint8 else -100
    target = torch.where(torch.rand(shape) < 0.75, target, ignore_index)
    return Labels(target.to(dtype).to(DEVICE), num_classes, ignore_index)


def all_of(target: Tensor, num_classes: int) -> Labels:
    """Labels that all count."""
    return Labels(target, num_classes, -100)


def kept(of: Labels) -> Tensor:
    return of.target.long() != of.ignore_index


def there(of: Labels, device: str) -> Labels:
    return of._replace(target=of.target.to(device))


def plain(input: Tensor, of: Labels) -> tuple[Tensor, Tensor]:
    """Cross-entropy and ‖p − e_y‖² by PyTorch, in float64 for float64 logits and else in float32."""
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    keep = kept(of)
    index = torch.where(keep, of.target.long(), 0)
    log_prob = F.log_softmax(torch.where(keep.unsqueeze(1), input, 0), 1, dtype=dtype)
    one_hot = F.one_hot(index, input.shape[1]).movedim(-1, 1)
    error = (log_prob.exp() - one_hot).square().sum(1)
    loss = -log_prob.gather(1, index.unsqueeze(1)).squeeze(1)
    return torch.where(keep, loss, 0), torch.where(keep, error, 0).detach()


def exponential_error(exponent: Tensor) -> Tensor:
    """The most by which e^−exponent may be off, over its value: devices round the exponent of a power of 2."""
    rounded = torch.finfo(torch.float32).eps if DEVICE == "cuda" else 0.0
    return 1e-6 + exponent.double().abs() * rounded


def with_vector(form: Form, change: Callable[[Tensor], Tensor]) -> Form:
    """The form with another vector in the place of its own, if it has one."""
    kind: Callable[..., Form] = type(form)
    return kind(*(change(part) if isinstance(part, Tensor) else part for part in form))


def by_reference(form: Form, resize: Resize | None = None) -> Loss:
    """A form as the reference has it."""

    def values(input: Tensor, of: Labels) -> tuple[Tensor, None]:
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        here = with_vector(form, lambda vector: vector.to(input.device, dtype))
        return reference.pixel_values(Logits(input, resize), of, here), None

    return values


def outcome(loss: Loss, input: Tensor, of: Labels, grad: Tensor) -> dict[str, Tensor]:
    """Value, squared error if there is one, and gradient."""
    leaf = input.detach().requires_grad_()
    value, error = loss(leaf, of)
    (gradient,) = torch.autograd.grad(value, leaf, grad.to(value.dtype))
    found = {"loss": value.detach(), "gradient": gradient}
    return found if error is None else {**found, "error": error}


def no_worse(loss: Loss, exact: Loss, input: Tensor, of: Labels) -> None:
    """The kernel is as near to float64 as PyTorch in the logits' own dtype is.

    Its sums have another order and, on a device, its exponentials two units in the last place: of a value of 1 a few
    more ulp are not its fault. What it returns in half precision has been rounded once, as eager's has.
    """
    grad = torch.rand(of.target.shape)
    here = there(of, "cpu")
    truths = outcome(exact, input.cpu().double(), here, grad)
    eager = outcome(exact, input.cpu(), here, grad)
    kernel = outcome(loss, input, of, grad.to(input.device))
    assert kernel["gradient"].dtype == input.dtype
    for name, truth in truths.items():
        if not truth.numel():
            assert kernel[name].shape == truth.shape
            continue
        ours = (kernel[name].cpu().double() - truth).abs().max().item()
        theirs = (eager[name].double() - truth).abs().max().item()
        slack = 4 * torch.finfo(torch.float32).eps * max(1.0, truth.abs().max().item())
        if DEVICE == "cpu" and name == "gradient" and input.dtype == torch.bfloat16:
            # The interpreter cuts what a device rounds.
            slack += torch.finfo(torch.bfloat16).eps / 2 * max(1.0, truth.abs().max().item())
        assert ours <= 1.25 * theirs + slack, f"{name}: off by {ours:.3g}, eager by {theirs:.3g}"
