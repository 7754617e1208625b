"""What a user of the package meets first: its names, its imports, its docstrings."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import classbalance_losses as cb
from classbalance_losses import functional

PIXEL_LOSSES = {
    "DyCELoss": "dyce_loss",
    "GBWLoss": "gbw_loss",
    "WeightedCrossEntropyLoss": "weighted_cross_entropy_loss",
    "FocalLoss": "focal_loss",
    "DualFocalLoss": "dual_focal_loss",
    "DualCrossEntropyLoss": "dual_cross_entropy_loss",
    "LogitAdjustedLoss": "logit_adjusted_loss",
    "TverskyLoss": "tversky_loss",
    "DiceLoss": "dice_loss",
    "JaccardLoss": "jaccard_loss",
}
FEATURE_LOSSES = {  # without labels, or on features and embeddings, each with a signature of its own
    "EntropyLoss": "entropy_loss",
    "PullLoss": "pull_loss",
    "QueryDiversityLoss": "query_diversity_loss",
    "TopologyLoss": "topology_loss",
    "AnchorLoss": "anchor_loss",
    "PromptLoss": "prompt_loss",
    "MaskedConsistencyLoss": "masked_consistency_loss",
    "TextAlignmentLoss": "text_alignment_loss",
    "VisionLanguageLoss": "vision_language_loss",
}
LOSSES = {**PIXEL_LOSSES, **FEATURE_LOSSES}
ESTIMATORS = {
    "ClassStatistics",
    "PixelFrequency",
    "ImageFrequency",
    "MedianFrequency",
    "EffectiveNumber",
    "LossBased",
    "Curriculum",
}
PIECES = {
    "class_gradient_norms",
    "entropy_gradient_norms",
    "solve_class_weights",
    "gbw_class_weights",
    "class_prototypes",
    "class_confidence_weights",
    "pixel_frequency_weights",
    "image_frequency_weights",
    "median_frequency_weights",
    "effective_number_weights",
    "enet_weights",
    "loss_based_weights",
    "curriculum_weights",
}
EXTRAS = (
    "scipy",
    "cvxpy",
    "matplotlib",
    "numba",
    "triton",
    "PIL",
    "tqdm",
    "torchmetrics",
    "torchvision",
    "pandas",
)


def test_public_names() -> None:
    assert set(LOSSES) | ESTIMATORS <= set(cb.__all__)
    assert set(LOSSES.values()) | PIECES <= set(functional.__all__)
    assert all(hasattr(cb, name) for name in cb.__all__)
    assert all(hasattr(functional, name) for name in functional.__all__)
    assert cb.__version__


def test_import_needs_none_of_the_extras() -> None:
    """In a fresh interpreter: what torch itself imports is torch's affair, what we add to it is ours."""
    code = (
        "import sys, torch; before = set(sys.modules); import classbalance_losses; "
        f"print(*[name for name in {EXTRAS} if name in sys.modules and name not in before])"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == ""


def test_the_oldest_versions_stated_are_those_that_are_tested() -> None:
    root = Path(__file__).parent.parent
    stated = dict(re.findall(r'"(\w+)>=([\d.]+)', (root / "pyproject.toml").read_text()))
    tested = dict(re.findall(r"^(\w+)==([\d.]+)", (root / "constraints-floor.txt").read_text(), re.MULTILINE))
    assert {"torch", "numpy", "cvxpy", "scipy", "matplotlib", "pillow", "tqdm", "torchmetrics"} <= set(tested)
    for name in set(stated) & set(tested):
        assert f"{tested[name]}.".startswith(f"{stated[name]}."), name


def test_the_version_is_one() -> None:
    root = Path(__file__).parent.parent
    assert f"\nversion: {cb.__version__}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d\S+)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == cb.__version__


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_can_be_cited(name: str) -> None:
    notes = re.findall(
        r'notes: "(.*)"', (Path(__file__).parent.parent / "CITATION.cff").read_text(encoding="utf-8")
    )
    assert any(name in re.findall(r"\w+", note) for note in notes)


def test_typed() -> None:
    assert resources.files("classbalance_losses").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", LOSSES)
def test_docstring_gives_equation_source_shapes_and_errors(name: str) -> None:
    module, twin = getattr(cb, name), getattr(functional, LOSSES[name])
    text = inspect.getdoc(module) or ""
    assert "Shape:" in text
    assert "Raises:" in text
    everything = text + (inspect.getdoc(twin) or "") + (sys.modules[module.__module__].__doc__ or "")
    assert ".. math::" in everything
    assert re.search(r"(19|20)\d\d|arXiv|equation", everything)  # where it comes from


@pytest.mark.parametrize("name", sorted({*functional.__all__}))
def test_functions_are_documented_and_typed(name: str) -> None:
    function = getattr(functional, name)
    assert inspect.getdoc(function)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_module_and_function_take_the_same_options(name: str) -> None:
    """Same names, same defaults; but for what a call takes, and what only a module can keep."""
    module = inspect.signature(getattr(cb, name).__init__).parameters
    function = inspect.signature(getattr(functional, PIXEL_LOSSES[name])).parameters
    call = inspect.signature(getattr(cb, name).forward).parameters
    assert list(call)[:4] == ["self", "input", "target", "pixel_weight"]
    shared = {k: p.default for k, p in module.items() if k not in ("self", "momentum", "num_classes")}
    assert shared == {k: p.default for k, p in function.items() if k not in call}
    assert {"ignore_index": -100, "reduction": "mean", "process_group": None}.items() <= shared.items()


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_only_numbers_of_the_classes_are_positional(name: str) -> None:
    parameters = list(inspect.signature(getattr(cb, name).__init__).parameters.values())[1:]
    positional = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert positional == {"WeightedCrossEntropyLoss": ["weight"], "LogitAdjustedLoss": ["prior"]}.get(
        name, []
    )
