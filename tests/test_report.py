"""What a bug report is asked for: the numbers of this process, and the reasons that the losses themselves give."""

from __future__ import annotations

import os
import runpy
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from classbalance_losses import __version__, _dispatch, report, use_backend


def test_what_is_installed_and_set() -> None:
    found = report.collect()
    assert found["Versions"]["classbalance_losses"] == __version__
    assert found["Versions"]["numpy"] == version("numpy")
    assert found["Versions"]["torch"].startswith(torch.__version__)
    assert found["Machine"]["threads"].startswith(f"{torch.get_num_threads()} ")
    assert found["Defaults"]["dtype"] == "torch.float32"
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert report.collect()["Defaults"]["dtype"] == "torch.bfloat16"
    finally:
        torch.set_default_dtype(torch.float32)


def test_cores_are_counted_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS and Windows
    assert report._machine()["threads"].endswith(f"for {os.cpu_count()} cores")


def test_the_reasons_are_those_of_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    with use_backend("reference"):
        assert report.collect()["Backends"]["chosen by use_backend"] == "reference"
    monkeypatch.setattr(_dispatch, "_HAS", {"cpu": True, "cuda": True})
    monkeypatch.setattr(_dispatch, "_failure", lambda name, device: f"{name} fails on {device}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert report._backends()["cpu"] == "does not run: cpu fails on cpu"
    assert report._backends()["cuda on cuda:0"] == "does not run: cuda fails on cuda:0"
    monkeypatch.setattr(_dispatch, "_failure", lambda name, device: None)
    assert report._backends()["cuda on cuda:0"] == "runs"
    monkeypatch.setattr(_dispatch, "_HAS", {"cpu": False, "cuda": False})
    assert "numba is not installed (pip install" in report._backends()["cpu"]


@pytest.mark.filterwarnings("error")
def test_a_backend_that_fails_is_told_and_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_HAS", {"cpu": True, "cuda": False})
    monkeypatch.setattr(_dispatch, "_tried", cache(_dispatch._tried.__wrapped__))

    def package(name: str) -> None:
        raise ImportError(f"no {name} here")

    monkeypatch.setattr(_dispatch, "_package", package)
    assert report._backends()["cpu"] == "does not run: ImportError: no cpu here"


def test_whose_threads_the_loops_run_on() -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    assert report._backends()["cpu"].startswith("runs on ")
    assert str(_dispatch._CPU_FROM) in report._backends()["cpu"]


def test_it_is_printed_without_the_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUMBA_SOMEWHERE", str(Path.home() / "cache"))
    monkeypatch.setenv("SECRET", "unheard of")
    monkeypatch.delitem(sys.modules, "classbalance_losses.report")
    runpy.run_module("classbalance_losses.report", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert heads == ["Versions", "Machine", "Backends", "Defaults", "Environment"]
    assert "  NUMBA_SOMEWHERE: ~/cache" in lines
    assert not any("SECRET" in line for line in lines)


def test_a_processor_has_a_name_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "_CPU_INFO", tmp_path / "nowhere")  # as on macOS and Windows
    assert report._processor()
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")  # an ARM of Linux says no name
    monkeypatch.setattr(report, "_CPU_INFO", tmp_path / "arm")
    assert report._processor()
    (tmp_path / "x86").write_text("processor\t: 0\nmodel name\t: A Fine CPU\n")
    monkeypatch.setattr(report, "_CPU_INFO", tmp_path / "x86")
    assert report._processor() == "A Fine CPU"
