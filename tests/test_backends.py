"""Who is chosen, what is said where a backend cannot run, and what a call keeps."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import DEFAULTS, Case, close, grad, over, sample
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import classbalance_losses
from classbalance_losses import DyCELoss, _dispatch, use_backend
from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Labels, Logits

LARGE = (2, 128, 120)  # times 19 classes: enough logits for "auto" to choose the loops


@pytest.fixture
def _numba() -> None:
    pytest.importorskip("numba", reason="numba is not installed")


@over(DEFAULTS)
@pytest.mark.usefixtures("_numba")
def test_large_inputs_take_the_loops_by_themselves(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from classbalance_losses.kernels.cpu import pixel, sums

    ran: list[Any] = []
    run = pixel.run
    for module in (pixel, sums):
        monkeypatch.setattr(module, "run", lambda task, job: ran.append(task) or run(task, job))
    large = sample(2, 19, shape=LARGE, dtype=torch.float32).leaf()
    case(sample(2, dtype=torch.float32).leaf())
    assert not ran
    loss = case(large)
    assert ran
    gradient = grad(loss, large)
    with use_backend("reference"):
        close(loss, case(large).item(), rtol=1e-5)
        close(gradient, grad(case(large), large).double().numpy(), rtol=1e-4, atol=1e-9)
    ran.clear()
    case(sample(2, 19, shape=LARGE).leaf())
    assert not ran  # of float64


@over(DEFAULTS)
@pytest.mark.usefixtures("_numba")
def test_kept_bytes(case: Case) -> None:
    """Between forward and backward: numbers for each pixel, not for each of its 19 classes."""
    large = sample(2, 19, shape=LARGE, dtype=torch.float32).leaf()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = case(large)
    own = {large.input.data_ptr(), large.target.data_ptr()}
    size = sum(size for place, size in kept.items() if place not in own)
    assert size <= 0.12 * large.input.numel() * 4
    loss.backward()


def test_chosen_as_context_and_for_good() -> None:
    assert _dispatch._chosen == "auto"
    with use_backend("reference"):
        assert _dispatch._chosen == "reference"
        with use_backend("cpu") as nothing:
            assert nothing is None
            assert _dispatch._chosen == "cpu"
        assert _dispatch._chosen == "reference"
        use_backend("auto")
        assert _dispatch._chosen == "auto"
    assert _dispatch._chosen == "auto"
    assert repr(use_backend("auto")) == "use_backend('auto')"


def test_unknown_backend() -> None:
    with pytest.raises(
        ValueError, match="Expected backend to be one of 'auto', 'reference', 'cpu', 'cuda', got 'gpu'"
    ):
        use_backend("gpu")
    assert _dispatch._chosen == "auto"


@pytest.mark.parametrize(("former", "name"), [("blocked", "cpu"), ("triton", "cuda")])
def test_former_names_are_understood_and_warn(
    former: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dispatch, "_HAS", {"cpu": True, "cuda": True})
    with pytest.warns(FutureWarning, match=f'use_backend\\("{name}"\\)'), use_backend(former):
        assert _dispatch._chosen == name
    monkeypatch.setattr(_dispatch, "_HAS", {"cpu": False, "cuda": True})
    with pytest.warns(FutureWarning, match=r'use_backend\("reference"\)'), use_backend("blocked"):
        assert _dispatch._chosen == "reference"


@pytest.mark.usefixtures("_numba")
def test_the_loops_say_why_they_cannot() -> None:
    here = sample(2, dtype=torch.float32)
    with use_backend("cpu"):
        with pytest.raises(ValueError, match=r"on the CPU, got .* on meta"):
            DyCELoss()(here.input.to("meta"), here.target.to("meta"))
        with pytest.raises(ValueError, match=r"inside a transform of torch\.func"):
            torch.func.grad(lambda x: DyCELoss()(x, here.target))(here.input)
        with pytest.raises(ValueError, match=r"got logits of torch.float64"):
            DyCELoss()(here.input.double(), here.target)


@over(DEFAULTS)
def test_transforms_take_the_reference_by_themselves(case: Case) -> None:
    large = sample(2, 19, shape=LARGE)
    expected = large.leaf()
    gradient = torch.func.grad(lambda x: case(large, input=x))(large.input)
    close(gradient, grad(case(expected), expected).numpy(), rtol=1e-7)


def test_public_name() -> None:
    assert "use_backend" in classbalance_losses.__all__


def test_nan_in_a_valid_pixel_is_not_hidden() -> None:
    here = sample(2, 19, shape=LARGE, ignored=0.0, dtype=torch.float32)
    here.input[0, 3, 5, 5] = torch.nan
    leaf = here.leaf()
    loss = classbalance_losses.FocalLoss()(leaf.input, leaf.target)
    assert loss.isnan()
    assert grad(loss, leaf)[0, :, 5, 5].isnan().all()
    assert F.cross_entropy(here.input, here.target).isnan()


@pytest.mark.parametrize(("name", "extra"), [("cpu", "numba"), ("cuda", "triton")])
def test_a_backend_is_asked_for_where_it_is_not_installed(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dispatch, "_HAS", {"cpu": False, "cuda": False})
    here = sample(2, 19, shape=LARGE, dtype=torch.float32)
    with use_backend(name), pytest.raises(ValueError, match=rf"classbalance_losses\[{extra}\]"):
        DyCELoss()(here.input, here.target)
    assert DyCELoss()(here.input, here.target) > 0


@pytest.mark.parametrize("failure", ["RuntimeError: Failed to find C compiler.", None])
@pytest.mark.parametrize(
    ("name", "remedy"), [("cpu", "pip install -U numba numpy"), ("cuda", "gcc and python3-dev")]
)
def test_a_backend_runs_where_it_works(
    name: str, remedy: str, failure: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked once for the device, warned of once, and an error where it was chosen by name."""
    asked: list[torch.device] = []
    package = SimpleNamespace(
        failure=lambda device: asked.append(device) or failure, reasons=lambda logits, labels: []
    )
    monkeypatch.setattr(_dispatch, "_HAS", {"cpu": True, "cuda": True})
    monkeypatch.setattr(_dispatch, "_package", lambda name: package)
    monkeypatch.setattr(_dispatch, "_tried", cache(_dispatch._tried.__wrapped__))
    monkeypatch.setattr(_dispatch, "is_plain", lambda *tensors: True)  # fake tensors are a subclass
    with FakeTensorMode():
        logits = Logits(torch.empty(2, 19, 512, 512, device=name))
        labels = Labels(torch.empty(2, 512, 512, dtype=torch.int64, device=name), 19, -100)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        chosen = [_dispatch.backend_for(logits, labels) for _ in range(2)]
    assert asked == [logits.input.device]
    if failure is None:
        assert chosen == [package] * 2
        assert not said
        return
    assert chosen == [reference] * 2
    (warning,) = said
    assert failure in str(warning.message)
    assert remedy in str(warning.message)
    with use_backend(name), pytest.raises(ValueError, match=r"cannot run: RuntimeError.*C compiler"):
        _dispatch.backend_for(logits, labels)


@pytest.mark.usefixtures("_numba")
def test_numba_that_does_not_work_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from classbalance_losses.kernels.cpu import probe, threads

    cpu = torch.device("cpu")

    def fail() -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(probe, "run_one", fail)
    assert "no locator available" in str(threads.failure(cpu))
    with monkeypatch.context() as broken:  # an import raises ImportError, as beside a numpy too new for it
        broken.setattr(_dispatch, "_tried", cache(_dispatch._tried.__wrapped__))
        broken.delitem(sys.modules, "classbalance_losses.kernels.cpu")
        broken.delattr(classbalance_losses.kernels, "cpu")
        broken.setitem(sys.modules, "numba", None)
        for name in [name for name in sys.modules if name.startswith("classbalance_losses.kernels.cpu.")]:
            broken.delitem(sys.modules, name)
        with pytest.warns(
            UserWarning, match=r"numba is installed and does not work.*pip install -U numba numpy"
        ):
            assert _dispatch._failure("cpu", "cpu") is not None
