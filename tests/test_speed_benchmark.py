"""The speed benchmark at tiny sizes: everyone competes, nobody wrong is timed, results become a page. No times."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("pytest_benchmark")

import classbalance_losses
from benchmarks.readme_block import README, SPEED_PAGE, fill
from benchmarks.speed import __main__ as command
from benchmarks.speed import compare, contenders, inputs, machine, readme
from benchmarks.speed.case import Build, Case, measure
from benchmarks.speed.contenders import CROSS_ENTROPY, Contender, Skipped, ours
from benchmarks.speed.correctness import errors_of, relative_error, truth_of
from benchmarks.speed.measure import Runner, highest, memory_of, quartiles
from benchmarks.speed.results import Entry, Results, read_results
from benchmarks.speed.settings import Settings
from benchmarks.speed.table import progress_line
from benchmarks.speed.tasks import BINARY_TASKS, OVERLAP_TASKS, PIXEL_TASKS, SOFT_TASKS, Task, pixel_task

QUICK = Settings(quick=True, seconds=0, warm_up=0, min_rounds=2)
# The Tversky and Jaccard losses are Dice with other constants, adjusted logits a cross-entropy with an offset.
ALIKE = {"TverskyLoss", "JaccardLoss", "LogitAdjustedLoss"}
LOSSES = {name for name in classbalance_losses.__all__ if name.endswith("Loss")} - ALIKE
WITHOUT_LABELS = ("pull", "text", "entropy")  # families of losses that take no label of each pixel
UNLABELLED = {case.contender.loss for case in command.all_cases(QUICK) if case.family in WITHOUT_LABELS}
CASES = list(command.all_cases(QUICK))
# Compiling takes seconds, as interpreting kernels does, and other people's packages are slow to import: `make bench`
# has them. Of interpreted kernels that enlarge, which take longest, one case stands for all.
ENLARGED = [c for c in CASES if c.contender.name.endswith("with upsampling inside, cuda")]
SWIFT = [
    case
    for case in CASES
    if "compile" not in case.contender.name
    and case not in ENLARGED[1:]
    and case.contender.origin != "peer"
    and (case.dtype == "float32" if case.family != "layout" else case.contender.backend != "cuda")
    and case.family
    in (*WITHOUT_LABELS, "pixel", "head", "mining", "upsample", "layout", "binary", "overlap", "soft")
]


def pedantic(target: Callable[[], None], setup: Callable[[], None], rounds: int, iterations: int) -> None:
    """pytest-benchmark's, without its statistics."""
    assert iterations == 1
    for _ in range(rounds):
        setup()
        target()


def pixel_case(contender: Contender, task: str = "cross-entropy") -> Case:
    build = Build(inputs.pixels, ((1, 3, 8, 8), "float32", "cpu"))
    return Case("pixel 1", "pixel", "1", "float32", pixel_task(task), contender, build, 64, 3)


def test_every_public_loss_competes() -> None:
    covered = {case.contender.loss for case in CASES}
    assert covered - {""} == LOSSES, "add the loss to benchmarks/speed/tasks.py"
    per_pixel = {c.loss for task in (*PIXEL_TASKS, *OVERLAP_TASKS) for c in task.contenders}
    assert per_pixel - {""} == LOSSES - UNLABELLED


def test_a_new_case_is_a_new_name() -> None:
    names = [(case.family, str(case)) for case in CASES]
    assert len(set(names)) == len(names)
    assert len({case.group for case in CASES}) < 13


def test_the_sizes_are_those_that_are_published() -> None:
    settings = Settings()
    assert settings.main_shape == (2, 19, 512, 1024)
    assert settings.binary_shape == (4, 1, 1024, 1024)
    shapes = {(4, 19, 512, 512), (2, 150, 512, 512), (1, 14, 96, 160, 160), (8, 11, 180, 240)}
    assert shapes <= set(settings.pixel_shapes)
    assert {case.dtype for case in CASES} == {"float32", "bfloat16", "float16"}
    enlarged = {((8, 19, 128, 256), (512, 1024)), ((4, 150, 128, 128), (512, 512))}
    assert enlarged <= set(Settings("cuda").upsample_shapes)


@pytest.mark.parametrize(
    ("group", "tasks"), [("binary", BINARY_TASKS), ("overlap", OVERLAP_TASKS), ("soft", SOFT_TASKS)]
)
def test_every_backend_competes_in_every_group(group: str, tasks: tuple[Task, ...]) -> None:
    """In float32, and in bfloat16 on the CPU the fast ones alone."""
    for task in tasks:
        for dtype, backends in (("float32", contenders.BACKENDS), ("bfloat16", contenders.FAST)):
            own = [case for case in CASES if (case.group, case.task, case.dtype) == (group, task, dtype)]
            assert tuple(c.contender.backend for c in own if c.contender.origin == "ours") == backends


# Of numpy, which interprets the kernels: a GPU says nothing.
@pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")
@pytest.mark.parametrize("case", SWIFT, ids=str)
def test_answers_are_right_and_times_are_paired(case: Case) -> None:
    entry = measure(case, QUICK, pedantic)
    if entry.status == "skipped":
        assert entry.reason
        return
    assert entry.status == "timed", entry.reason
    assert len(entry.total) == len(entry.forward) == len(entry.baseline_total) == 2
    assert all(math.isfinite(value) and value > 0 for value in entry.ratio)
    assert entry.peak is not None
    assert entry.kept is not None
    assert entry.peak >= entry.kept
    assert progress_line(entry, 1e9).startswith(case.axis)


def wrong(problem: inputs.Pixels) -> Callable[[], torch.Tensor]:
    right = CROSS_ENTROPY.build(problem)
    return lambda: 1.01 * right()


def broken(problem: inputs.Pixels) -> Callable[[], torch.Tensor]:
    def step() -> torch.Tensor:
        raise RuntimeError("no kernel\nfor this shape")

    return step


def absent(problem: inputs.Pixels) -> Callable[[], torch.Tensor]:
    raise Skipped("not installed")


@pytest.mark.parametrize(
    ("build", "status", "reason"),
    [
        (wrong, "wrong", "value off by 1.0e-02, gradient by 1.0e-02"),
        (broken, "failed", "RuntimeError: no kernel"),
        (absent, "skipped", "not installed"),
    ],
)
def test_who_is_wrong_has_no_time(build: Any, status: str, reason: str) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("it was timed")

    entry = measure(pixel_case(Contender(status, build)), QUICK, never)
    assert entry.status == status
    assert entry.reason.startswith(reason)
    assert not entry.total
    assert f"{status}: {reason}" in progress_line(entry, None)


def test_a_backend_is_chosen_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []

    def use_backend(name: str) -> Any:
        chosen.append(name)
        return nullcontext()

    monkeypatch.setattr(classbalance_losses, "use_backend", use_backend)
    loops, kernels = (ours("FocalLoss", backend) for backend in ("cpu", "cuda"))
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    assert "numba is not installed" in measure(pixel_case(loops, "focal"), QUICK, pedantic).reason
    monkeypatch.setattr(contenders, "find_spec", lambda name: name)
    assert measure(pixel_case(loops, "focal"), QUICK, pedantic).status == "timed"
    assert set(chosen) == {"cpu"}
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert measure(pixel_case(kernels, "focal"), QUICK, pedantic).reason == "the kernels need a CUDA device"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert measure(pixel_case(kernels, "focal"), QUICK, pedantic).status == "timed"
    assert set(chosen) == {"cpu", "cuda"}


def test_a_wrong_gradient_is_seen() -> None:
    problem = inputs.pixels((1, 3, 8, 8), "float32", "cpu")
    truth = truth_of(pixel_task("cross-entropy").truth, problem)
    value = CROSS_ENTROPY.build(problem)()
    assert errors_of(value.detach(), problem, truth).gradient == math.inf  # none there
    (2 * value).backward()
    errors = errors_of(value.detach(), problem, truth)
    assert errors.value < 1e-6
    assert errors.gradient == pytest.approx(1, abs=1e-4)
    assert relative_error(value.detach() * torch.nan, truth.value) == math.inf


def test_memory_is_what_is_allocated() -> None:
    problem = inputs.pixels((1, 3, 64, 64), "float32", "cpu")

    def twice() -> torch.Tensor:
        return (problem.input.exp() * 1.0).exp().sum()  # exp keeps its result

    memory = memory_of(Runner(Contender("twice", lambda p: twice), problem, twice), "cpu")
    assert memory.kept == pytest.approx(2 * problem.leaf_bytes, rel=0.01)
    assert 3 * problem.leaf_bytes <= memory.peak <= 5 * problem.leaf_bytes
    assert highest([5, -3, 4, -6]) == 6


def test_cuda_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the device: what is asked of it, not how fast it is."""
    now = iter(range(100))

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time = next(now)

        def elapsed_time(self, other: Event) -> float:
            return 1000.0 * (other.time - self.time)

    allocated = iter((100, 130))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(allocated))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 180)
    problem = inputs.pixels((1, 3, 8, 8), "float32", "cpu")
    runner = Runner(CROSS_ENTROPY, problem, CROSS_ENTROPY.build(problem))
    assert runner.timed("cuda", rehearse=True) == (1.0, 2.0)
    memory = memory_of(runner, "cuda")
    assert (memory.kept, memory.peak) == (30, 80)


def test_quartiles_and_exponents() -> None:
    assert quartiles([3.0, 1.0, 2.0]) == (1.5, 2.0, 2.5)
    assert quartiles([1.0]) == (1.0, 1.0, 1.0)
    assert compare.fitted_exponent([(x, 3 * x**1.5) for x in (1.0, 10.0, 100.0)]) == pytest.approx(1.5)


def entry(task: str, name: str, origin: str, factor: float, **fields: Any) -> Entry:
    base = Entry(
        "pixel 1×3×8×8", "pixel", "1×3×8×8", "float32", task, name, origin, "", "F.cross_entropy",
        pixels=64, classes=3, kept=100, peak=200, baseline_kept=1, baseline_peak=2, leaf_bytes=768,
        least_bytes=3000, value_error=0.0, gradient_error=1e-7,
        forward=[0.5e-3 * factor] * 3, total=[1e-3 * factor] * 3,
        baseline_forward=[0.5e-3] * 3, baseline_total=[1e-3] * 3,
    )  # fmt: skip
    return replace(base, **fields)


ENTRIES = [
    entry("cross-entropy", "F.cross_entropy", "torch", 1.0),
    entry("cross-entropy", "WeightedCrossEntropyLoss, cpu", "ours", 0.5),
    entry("focal", "kornia focal_loss", "peer", 0.75),
    entry("focal", "FocalLoss, cpu", "ours", 1.5),
    entry("focal", "MONAI FocalLoss", "peer", 1.0, status="wrong", reason="value off", total=[]),
]
SWEPT = [
    entry("cross-entropy", "F.cross_entropy", "torch", f, group="scaling", family=f"scaling, {s}", **{s: n})
    for s in ("pixels", "classes")
    for f, n in ((1, 10), (2, 20))
]


def options(out: Path, **more: Any) -> Namespace:
    return Namespace(
        **{"out": out, "device": "cpu", "quick": True, "seconds": 0.0, "again": False, "only": None, **more}
    )


def test_a_run_goes_on_and_becomes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"pixel 1×3×8×8": ENTRIES, "scaling": SWEPT}
    asked: list[str] = []

    def measured(group: str, bandwidth: float, options: Namespace) -> tuple[int, list[Entry]]:
        assert bandwidth > 0
        asked.append(group)
        return 0, given[group]

    monkeypatch.setattr(command, "groups_of", lambda settings: list(given))
    monkeypatch.setattr(command, "measure_group", measured)
    monkeypatch.setattr(command, "measured_commit", lambda: "0123456789ab")
    out = tmp_path / "benchmarks" / "results"
    assert command.run(options(out, only="pixel 1×3×8×8")) == 0
    assert command.run(options(out)) == 0
    assert command.run(options(out)) == 0
    assert asked == list(given)
    assert "measured at 0123456789ab already" in capsys.readouterr().out

    (folder,) = out.iterdir()
    assert folder.name.startswith("cpu-1-thread-")
    page = (folder / "README.md").read_text()
    assert "is slower than somebody else's in 1," in page
    assert "FocalLoss, cpu takes 1.50 × the baseline, kornia focal_loss 0.75 ×" in page
    assert "MONAI FocalLoss: wrong: value off" in page
    assert "exponent" in page
    plots = {path.name for path in (folder / "plots").iterdir()}
    assert plots == {"ratios_1x3x8x8_float32.png", "memory_1x3x8x8_float32.png", "scaling.png"}
    assert all(f"plots/{name}" in page for name in plots)

    block = readme.speed_block(tmp_path)
    assert "| focal         | FocalLoss, cpu" in block
    assert "loses 1 of 2 jobs" in block
    assert readme.NO_GPU in block
    assert readme.NO_FILE not in block
    assert command.report(options(out)) == 0


def test_other_circumstances_are_told_beside_the_main_table() -> None:
    results = Results({}, 1.0)
    results.put("pixel 1×3×8×8", "0123", ENTRIES)
    assert not readme._beside(results)
    compiled = {"group": "compile", "family": "compile"}
    entries = [
        entry(
            "DyCE", "DyCELoss, cpu", "ours", 0.25, **compiled
        ),  # is beside its own compiled form, not a row
        entry("DyCE", "DyCELoss, cpu, torch.compile", "ours", 0.5, **compiled),
    ]
    results.put("compile", "0123", entries)
    last = {"group": "layout", "family": "layout", "axis": "1×3×8×8, channels last"}
    results.put(
        "layout", "0123", [entry("cross-entropy", "WeightedCrossEntropyLoss, cpu", "ours", 0.75, **last)]
    )
    _, told = readme._beside(results)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines()]
    assert cells[0] == ["logits", "DyCE", "cross-entropy"]
    assert cells[2:] == [
        ["1×3×8×8 float32, compiled, over compiled `F.cross_entropy`", "0.50", "–"],
        ["1×3×8×8, channels last float32", "–", "0.75"],
    ]


def test_changes_that_are_not_committed_are_measured_again() -> None:
    results = Results({}, 1.0)
    for commit in ("0123", "0123+changes"):
        results.put("a", commit, ENTRIES)
        assert results.done("a", commit) == (commit == "0123")
    assert not results.done("b", "0123")
    assert not results.done("a", "4567")


def test_results_survive_the_file(tmp_path: Path) -> None:
    results = Results({"name": "x"}, 1e10)
    results.put("a", "0123", [*ENTRIES, replace(ENTRIES[0], gradient_error=math.inf)])
    results.write(tmp_path)
    again = read_results(tmp_path)
    assert again is not None
    assert list(again.entries())[:-1] == ENTRIES
    assert list(again.entries())[-1].gradient_error is None
    assert read_results(tmp_path / "nowhere") is None


def test_pytest_benchmark_runs_a_group(tmp_path: Path) -> None:
    """In a process of its own, as `make bench` does it."""
    code, entries = command.measure_group("pieces", 1e9, options(tmp_path))
    assert code == 0
    assert {entry.family for entry in entries} == {"class weights", "head", "mining", *WITHOUT_LABELS}
    assert any(entry.timed for entry in entries)
    assert {entry.status for entry in entries} <= {"timed", "skipped"}


def test_the_machine_has_a_name() -> None:
    described = machine.describe("cpu")
    assert described["threads"] == torch.get_num_threads()
    assert described["torch"] == torch.__version__
    assert machine.slug("NVIDIA H200 (PCIe)") == "nvidia-h200-pcie"
    assert machine.copy_bandwidth("cpu", quick=True, rounds=2) > 0


def test_the_readme_is_up_to_date() -> None:
    for page, block in ((README, readme.summary_block()), (SPEED_PAGE, readme.speed_block())):
        text = page.read_text()
        assert fill(text, "speed", block) == text, "run: python -m benchmarks.speed.readme"


def test_without_results_the_readme_says_so(tmp_path: Path) -> None:
    block = readme.speed_block(tmp_path)
    assert readme.NO_FILE in block
    assert readme.NO_GPU in block
    assert readme.summary_block(tmp_path) == readme.NO_FILE
