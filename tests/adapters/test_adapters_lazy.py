"""The adapters cost nothing to those who do not use them, and say what is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

FRAMEWORKS = ("mmengine", "monai", "nnunetv2", "transformers", "accelerate", "lightning", "ignite")


def test_no_framework_is_imported() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import classbalance_losses; "
        "from classbalance_losses.adapters import huggingface, monai; "
        f"print(*[name for name in {FRAMEWORKS} if name in sys.modules and name not in before])"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.mark.parametrize(
    ("module", "package"), [("mmengine", "mmengine"), ("nnunet", "nnunetv2"), ("lightning", "lightning")]
)
def test_a_missing_framework_is_named(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"classbalance_losses.adapters.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for loaded in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)  # what import makes of a package that is not there
    with pytest.raises(ImportError, match=f"pip install {package}"):
        __import__(name)
