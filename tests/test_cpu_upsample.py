"""The pixel pass over logits that are enlarged on the way: against interpolation and the forms, in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from forms import FORMS, exact
from kernel_checks import WARNINGS
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Labels, Logits, Resize
from classbalance_losses.kernels.forms.reference import CrossEntropy, Focal, Form

pytest.importorskip("numba")

from classbalance_losses.kernels.cpu import pixel, threads, upsample

if threads.failure(torch.device("cpu")) is not None:
    pytest.skip("loops cannot run here", allow_module_level=True)

CLASSES = 5
SIZES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3,), (12,)),
    ((7,), (4,)),  # an axis that shrinks
    ((3, 4), (12, 16)),
    ((3, 4), (7, 9)),
    ((5, 6), (3, 4)),
    ((2, 9), (11, 4)),
    ((1, 3), (4, 1)),
    ((3, 2), (3, 2)),
    ((1, 1), (3, 5)),
    ((2, 3, 2), (4, 6, 8)),
    ((3, 2, 4), (5, 7, 3)),
    ((1, 5, 1), (1, 40, 1)),
    ((600,), (2500,)),  # more pixels than a tile has
    ((2, 300), (3, 1300)),
    ((2,), (1500,)),  # and between two columns
]
over_sizes = pytest.mark.parametrize(("low", "full"), SIZES, ids=str)
over_corners = pytest.mark.parametrize("align_corners", [False, True])
# For each number of axes.
FEW = [((9,), (31,)), ((7, 5), (23, 18)), ((3, 4, 5), (7, 9, 11))]


CHOICE = upsample._on_the_way


@pytest.fixture(autouse=True)
def _always_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small logits too, and those that shrink."""
    monkeypatch.setattr(upsample, "_on_the_way", lambda logits: logits.resize)


@pytest.fixture
def _small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsample, "_PIXELS", 7)
    monkeypatch.setattr(upsample, "_CELLS", 4)


def some(
    low: tuple[int, ...],
    full: tuple[int, ...],
    align_corners: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Logits, Labels]:
    input = (torch.randn(2, CLASSES, *low) * 3).to(dtype).requires_grad_()
    target = torch.where(torch.rand(2, *full) < 0.8, torch.randint(CLASSES, (2, *full)), -100)
    return Logits(input, Resize(full, align_corners)), Labels(target, CLASSES, -100)


def double(logits: Logits) -> Logits:
    return Logits(logits.input.detach().double().requires_grad_(), logits.resize)


def near(actual: Tensor, expected: Tensor, eps: float = 1e-5) -> None:
    """Within some float32 steps of what are sums of thousands of numbers, at worst."""
    torch.testing.assert_close(actual.double(), expected, rtol=eps, atol=2e-5)


def check(logits: Logits, labels: Labels, form: Form, eps: float = 1e-5) -> None:
    twin = double(logits)
    wanted = reference.pixel_values(twin, labels, exact(form))
    got = pixel.pixel_values(logits, labels, form)
    assert got.dtype == torch.float32
    near(got, wanted, 1e-5)
    grad = torch.rand(got.shape)
    (gradient,) = torch.autograd.grad(got, logits.input, grad)
    assert gradient.dtype == logits.input.dtype
    near(gradient, torch.autograd.grad(wanted, twin.input, grad.double())[0], eps)


@over_sizes
@over_corners
def test_equals_interpolation(low: tuple[int, ...], full: tuple[int, ...], align_corners: bool) -> None:
    check(*some(low, full, align_corners), CrossEntropy())


@over_sizes
@over_corners
@pytest.mark.usefixtures("_small_cells")
def test_in_small_cells(low: tuple[int, ...], full: tuple[int, ...], align_corners: bool) -> None:
    check(*some(low, full, align_corners), CrossEntropy())


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("low", "full"), FEW, ids=str)
@pytest.mark.usefixtures("_small_cells")
def test_every_form(name: str, low: tuple[int, ...], full: tuple[int, ...]) -> None:
    check(*some(low, full), FORMS[name](CLASSES))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("low", "full"), FEW, ids=str)
def test_half_logits(dtype: torch.dtype, low: tuple[int, ...], full: tuple[int, ...]) -> None:
    """They are interpolated in float32: only the gradient is rounded."""
    check(*some(low, full, dtype=dtype), CrossEntropy(), torch.finfo(dtype).eps)


@pytest.mark.parametrize("num_classes", [2, 19, 1024])
def test_class_counts(num_classes: int) -> None:
    input = torch.randn(1, num_classes, 3, 5, requires_grad=True)
    labels = Labels(torch.randint(num_classes, (1, 9, 15)), num_classes, -100)
    check(Logits(input, Resize((9, 15), False)), labels, CrossEntropy())


@pytest.mark.parametrize(("low", "full"), FEW, ids=str)
@over_corners
def test_error(low: tuple[int, ...], full: tuple[int, ...], align_corners: bool) -> None:
    logits, labels = some(low, full, align_corners)
    twin = double(logits)
    for got, wanted in zip(
        pixel.cross_entropy_and_error(logits, labels),
        reference.cross_entropy_and_error(twin, labels),
        strict=True,
    ):
        near(got, wanted)
        assert got.requires_grad == wanted.requires_grad


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("low", "full"), FEW, ids=str)
@pytest.mark.usefixtures("_small_cells")
def test_error_sums(squared: bool, low: tuple[int, ...], full: tuple[int, ...]) -> None:
    logits, labels = some(low, full)
    for weight in (None, torch.rand(labels.target.shape)):
        same = None if weight is None else weight.double()
        wanted = reference.error_sums(double(logits), labels, same, squared=squared)
        got = pixel.error_sums(logits, labels, weight, squared=squared)
        assert not got.requires_grad
        near(got, wanted)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_labels_of_any_type_and_layout(dtype: torch.dtype) -> None:
    logits, labels = some((3, 4), (12, 16))
    target = torch.where(labels.target == -100, 255, labels.target).to(dtype)
    for same in (target, target.transpose(1, 2).contiguous().transpose(1, 2)):
        got = pixel.pixel_values(logits, Labels(same, CLASSES, 255), CrossEntropy())
        assert torch.equal(got, pixel.pixel_values(logits, labels, CrossEntropy()))


def test_logits_of_any_layout() -> None:
    logits, labels = some((3, 4), (12, 16))
    plain = logits.input.detach()
    grad = torch.rand(16, 12, 2).permute(2, 1, 0)

    def gradient(input: Tensor) -> Tensor:
        leaf = input.detach().requires_grad_()
        value = pixel.pixel_values(Logits(leaf, logits.resize), labels, CrossEntropy())
        return torch.autograd.grad(value, leaf, grad)[0]

    padded = F.pad(plain, (1, 2, 3, 1))
    for same in (plain.contiguous(memory_format=torch.channels_last), padded[:, :, 3:-1, 1:-2]):
        assert torch.equal(gradient(same), gradient(plain))
    once = plain[:1]
    assert torch.equal(gradient(once.expand(2, -1, -1, -1)), gradient(torch.cat([once, once])))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_only_ignored_pixels_see_is_inert(value: float) -> None:
    logits, labels = some((4, 4), (8, 8))
    labels.target[
        :, :, :4
    ] = -100  # the columns that column 0 of the logits, and none that others alone, reaches
    spoilt = logits.input.detach().clone()
    spoilt[..., 0] = value
    found = []
    for input in (logits.input, spoilt.requires_grad_()):
        got = pixel.pixel_values(Logits(input, logits.resize), labels, CrossEntropy())
        found.append((got, *torch.autograd.grad(got.sum(), input)))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert not found[1][1][..., 0].any()


@over_corners
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_in_a_valid_pixel_is_not_hidden(value: float, align_corners: bool) -> None:
    """An infinite logit, interpolated with a share of 0, is NaN; by `F.interpolate` too."""
    logits, labels = some((4, 4), (9, 8), align_corners)
    with torch.no_grad():
        logits.input[0, 1, 2, 1] = value
    twin = double(logits)
    assert logits.resize is not None
    got = pixel.pixel_values(logits, labels, CrossEntropy())
    (gradient,) = torch.autograd.grad(got.sum(), logits.input)
    seen = ~logits.resize(twin.input).isfinite().all(1) & (labels.target != -100)
    is_own = labels.target == 1
    assert seen.any()
    if value != -torch.inf:
        assert torch.equal(~got.isfinite(), seen)
    else:
        assert not got[seen & is_own].isfinite().any()
    assert got[~seen].isfinite().all()
    assert gradient[0, :, 2, 1].isnan().any()


def test_a_class_that_is_ruled_out_has_no_probability() -> None:
    """Where no share is 0, as the first row's and column's are."""
    logits, labels = some((4, 5), (8, 10))
    labels.target[labels.target == 1] = 0
    labels.target[:, 0] = labels.target[:, :, 0] = -100
    with torch.no_grad():
        logits.input[:, 1] = -torch.inf
    value = pixel.pixel_values(logits, labels, CrossEntropy())
    (gradient,) = torch.autograd.grad(value.sum(), logits.input)
    assert not gradient[:, 1].any()
    assert gradient.isfinite().all()
    assert gradient.any()


@pytest.mark.parametrize(("low", "full"), [*FEW, ((40, 41), (100, 97))], ids=str)
@pytest.mark.usefixtures("_small_cells")
def test_one_thread_or_three_find_the_same_bits(low: tuple[int, ...], full: tuple[int, ...]) -> None:
    logits, labels = some(low, full)
    former, found = torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        value = pixel.pixel_values(logits, labels, Focal(2.0))
        sums = pixel.error_sums(logits, labels, None, squared=True)
        found.append((value, *torch.autograd.grad(value.sum(), logits.input), sums))
    torch.set_num_threads(former)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("name", FORMS)
def test_double_backward(name: str) -> None:
    (logits, labels), form = some((2, 3), (5, 7)), FORMS[name](CLASSES)
    twin = double(logits)
    slopes = []
    for here, values, way in (
        (logits, pixel.pixel_values, form),
        (twin, reference.pixel_values, exact(form)),
    ):
        value = values(here, labels, way).sum()
        (first,) = torch.autograd.grad(value, here.input, create_graph=True)
        slopes.append(torch.autograd.grad(first.square().sum(), here.input)[0])
    near(slopes[0], slopes[1])


def test_gradients_in_a_batch() -> None:
    logits, labels = some((2, 3), (5, 7))
    value = pixel.pixel_values(logits, labels, CrossEntropy())
    grads = torch.rand(3, *value.shape)
    (batch,) = torch.autograd.grad(value, logits.input, grads, is_grads_batched=True, retain_graph=True)
    for grad, got in zip(grads, batch, strict=True):
        near(got, torch.autograd.grad(value, logits.input, grad, retain_graph=True)[0].double())


@pytest.mark.parametrize("images", [0, 2])
def test_nothing_to_do(images: int) -> None:
    input = torch.randn(images, 3, 4, 4, requires_grad=True)
    labels = Labels(torch.full((images, 8, 8), -100), 3, -100)
    value = pixel.pixel_values(Logits(input, Resize((8, 8), False)), labels, CrossEntropy())
    (gradient,) = torch.autograd.grad(value.sum(), input)
    assert not value.any()
    assert not gradient.any()
    assert gradient.shape == input.shape


@pytest.mark.parametrize(
    ("low", "full", "is_on_the_way"),
    [
        ((32, 64), (128, 256), True),
        ((10,), (11,), True),
        ((1, 10, 1), (1, 20, 1), True),
        ((32, 32, 32), (64, 64, 64), True),
        ((100, 4), (400, 16), False),  # short rows
        ((100, 100), (50, 200), False),
        ((64, 64), (64, 64), False),
        ((1, 1), (1, 1), False),
    ],
    ids=str,
)
def test_where_cells_pay(low: tuple[int, ...], full: tuple[int, ...], is_on_the_way: bool) -> None:
    logits, _ = some(low, full)
    assert (CHOICE(logits) is not None) == is_on_the_way


@pytest.mark.parametrize(("low", "full"), FEW, ids=str)
def test_interpolated_first(
    low: tuple[int, ...], full: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upsample, "_on_the_way", lambda _: None)
    check(*some(low, full, dtype=torch.bfloat16), CrossEntropy(), torch.finfo(torch.bfloat16).eps)
    logits, labels = some(low, full)
    near(
        pixel.cross_entropy_and_error(logits, labels)[1],
        reference.cross_entropy_and_error(logits, labels)[1].double(),
    )
    near(
        pixel.error_sums(logits, labels, None, squared=False),
        reference.error_sums(double(logits), labels, None, squared=False),
    )


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_they_err_no_more_than_torch(scale: float) -> None:
    input = (torch.randn(2, 19, 9, 11) * scale).requires_grad_()
    labels = Labels(torch.randint(19, (2, 36, 44)), 19, -100)
    logits = Logits(input, Resize((36, 44), False))
    twin, grad = double(logits), torch.rand(labels.target.shape)
    found = []
    for here, values in (
        (twin, reference.pixel_values),
        (logits, pixel.pixel_values),
        (logits, reference.pixel_values),
    ):
        value = values(here, labels, CrossEntropy())
        (gradient,) = torch.autograd.grad(value, here.input, grad.to(value.dtype))
        found.append((value.detach().double(), gradient.double()))
    for truth, ours, theirs in zip(*found, strict=True):
        error, others = float((ours - truth).abs().max()), float((theirs - truth).abs().max())
        assert error <= others + 2 * torch.finfo(torch.float32).eps * float(truth.abs().max())


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux says what memory was used at most"
)
def test_full_size_logits_never_exist() -> None:
    """In forward and backward; the reference's do, so this would see them."""
    num_classes, full = 40, (1024, 1024)
    input = torch.randn(1, num_classes, 128, 128, requires_grad=True)
    logits = Logits(input, Resize(full, False))
    labels = Labels(torch.randint(num_classes, (1, *full), dtype=torch.uint8), num_classes, 255)
    pixel.pixel_values(logits, labels, CrossEntropy()).sum().backward()  # the loops are compiled
    size, used = num_classes * 4 << 20, []
    for values in (reference.pixel_values, pixel.pixel_values):
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        values(logits, labels, CrossEntropy()).sum().backward()
        used.append(resident("VmHWM") - before)
    assert used[0] > size
    assert used[1] < size / 4  # maps, and room for tiles


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def test_kept_bytes() -> None:
    """A number for each full-size pixel is kept."""
    logits, labels = some((16, 16), (64, 64))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = pixel.pixel_values(logits, labels, CrossEntropy())
    for given in (logits.input, labels.target):
        kept.pop(given.data_ptr(), None)
    assert 0 < sum(kept.values()) <= 4 * value.numel()
    value.sum().backward()


def test_memory_that_the_loop_was_not_written_for_is_refused() -> None:
    logits, labels = some((3, 4), (12, 16))
    x, target = logits.input.detach(), labels.target
    good = torch.rand(target.shape)

    def backward(grad: Tensor, target: Tensor, log_sum: Tensor) -> None:
        torch.ops.classbalance_losses.cpu_pixel_backward(grad, x, target, log_sum, -100, False, 0, [], None)

    backward(good, target, good)
    for bad in (good.double(), good[:, 1:], good.mT, torch.empty(0)):
        with pytest.raises(TypeError, match="Expected log_sum for a compiled loop"):
            backward(good, target, bad)
    with pytest.raises(TypeError, match="Expected slope for a compiled loop"):
        backward(good[:, 1:], target, good)
    with pytest.raises(TypeError, match="Expected label for a compiled loop"):
        backward(good, target.float(), good)


@pytest.mark.filterwarnings(*(mark.args[0] for mark in WARNINGS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_whole_in_a_compiled_graph(dtype: torch.dtype) -> None:
    logits, labels = some((3, 4), (12, 16), dtype=dtype)
    assert logits.resize is not None

    @torch.compile(fullgraph=True, backend="aot_eager")
    def total(input: Tensor, target: Tensor) -> Tensor:
        here = Logits(input, Resize(tuple(target.shape[1:]), False))
        return pixel.pixel_values(here, Labels(target, CLASSES, -100), Focal(2.0)).sum()

    wanted = pixel.pixel_values(logits, labels, Focal(2.0)).sum()
    got = total(logits.input, labels.target)
    assert torch.equal(got, wanted)
    assert torch.equal(*(torch.autograd.grad(value, logits.input)[0] for value in (got, wanted)))


def test_operators_are_what_they_say() -> None:
    logits, labels = some((3, 4), (12, 16), dtype=torch.bfloat16)
    x = logits.input.detach().contiguous(memory_format=torch.channels_last)
    operators, constants = torch.ops.classbalance_losses, (-100, True)
    check = ("test_schema", "test_faketensor")
    for with_error in (False, True):
        args = (x, labels.target, *constants, 0, [], None, with_error)
        torch.library.opcheck(operators.cpu_pixel_forward.default, args, test_utils=check)
    log_sum = torch.rand(labels.target.shape)
    args = (log_sum, x, labels.target, log_sum, *constants, 0, [], None)
    torch.library.opcheck(operators.cpu_pixel_backward.default, args, test_utils=check)
    args = (x, labels.target, None, *constants, True)
    torch.library.opcheck(operators.cpu_error_sums.default, args, test_utils=check)
