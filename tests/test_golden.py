"""Numbers on file: the references still make them, and the package still meets them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import CORE, Case, Sample, close, grad, over

from classbalance_losses import GBWLoss
from classbalance_losses.functional import solve_class_weights

FOLDER = Path(__file__).parent / "golden"
VECTORS: dict[str, Any] = json.loads((FOLDER / "vectors.json").read_text())


def stored() -> Sample:
    given = VECTORS["inputs"]
    floats = {k: torch.tensor(given[k], dtype=torch.float64) for k in ("input", "pixel_weight", "features")}
    return Sample(target=torch.tensor(given["target"]), ignore_index=given["ignore_index"], **floats)


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}/{key}")
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12, err_msg=where)


def test_references_still_make_them() -> None:
    spec = importlib.util.spec_from_file_location("golden_generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    fresh = generate.make()
    for part in ("inputs", "losses"):
        assert_same(fresh[part], VECTORS[part], part)
    for ours, theirs in zip(fresh["projections"], VECTORS["projections"], strict=True):
        assert_same(ours, theirs)


def test_every_core_row_has_a_vector() -> None:
    assert set(VECTORS["losses"]) == {case.id for case in CORE}


@over(CORE)
def test_losses_meet_them(case: Case) -> None:
    here, golden = stored().leaf(), VECTORS["losses"][case.id]
    for reduction in ("none", "sum", "mean"):
        close(case(here, reduction=reduction), golden[reduction])
    close(grad(case(here), here), golden["gradient of mean"])
    module = case.build(here)
    close(case.by_module(here, module), golden["mean"])
    if isinstance(module, GBWLoss):
        close(module.class_weight, golden["class_weight"], rtol=1e-6)


@pytest.mark.parametrize(
    "golden", VECTORS["projections"], ids=lambda v: f"{v['squared_norms']}-{v['regularization']}"
)
def test_projection_meets_them(golden: dict[str, Any]) -> None:
    g = torch.tensor(golden["squared_norms"], dtype=torch.float64)
    close(solve_class_weights(g, regularization=golden["regularization"]), golden["weights"], atol=1e-10)
