"""Markdown tables of the results, and the line of progress."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.speed.results import Entry

_MIB = 1 << 20


def progress_line(entry: Entry, bandwidth: float | None) -> str:
    """One case in a line."""
    head = f"{entry.axis} {entry.dtype} {entry.task}: {entry.contender}"
    if not entry.timed:
        return f"{head}: {entry.status}: {entry.reason}"
    share = f", {_share(entry, bandwidth)} of a copy's bandwidth" if bandwidth and entry.leaf_bytes else ""
    return f"{head}: {number(entry.milliseconds[1])} ms, {number(entry.ratio[1])} × {entry.baseline}{share}"


def timing_table(entries: Iterable[Entry], bandwidth: float) -> str:
    """One row a contender that was timed: medians, quartiles, the ratio to the baseline, memory, errors."""
    header = [
        "job", "contender", "forward, ms", "forward + backward, ms", "IQR, ms", "× baseline", "quartiles",
        "kept, MiB", "peak, MiB", "of copy bandwidth", "gradient error",
    ]  # fmt: skip
    return table(header, [_row(entry, bandwidth) for entry in entries if entry.timed])


def untimed_list(entries: Iterable[Entry]) -> str:
    """Who has no time, and why; equal reasons are told once."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if not entry.timed:
            names = reasons.setdefault(f"{entry.status}: {entry.reason}", [])
            if entry.contender not in names:
                names.append(entry.contender)
    return "\n".join(f"- {', '.join(names)}: {reason}" for reason, names in sorted(reasons.items()))


def summary_table(entries: Iterable[Entry]) -> str:
    """The short form: time, ratio and memory."""
    header = ["job", "contender", "forward + backward, ms", "× baseline", "quartiles", "kept, × logits"]
    rows = [
        [
            entry.task,
            entry.contender,
            number(entry.milliseconds[1]),
            number(entry.ratio[1]),
            _range(entry),
            number((entry.kept or 0) / entry.leaf_bytes),
        ]
        for entry in entries
        if entry.timed
    ]
    return table(header, rows)


def exponent_table(exponents: dict[str, dict[str, float]]) -> str:
    """The fitted exponents: one row a contender, one column a sweep."""
    sweeps = sorted({sweep for fits in exponents.values() for sweep in fits})
    rows = [
        [name, *(f"{fits[sweep]:.2f}" if sweep in fits else "–" for sweep in sweeps)]
        for name, fits in exponents.items()
    ]
    return table(["contender", *sweeps], rows)


def losses_list(lost: Iterable[tuple[Entry, Entry]]) -> str:
    """Where a contender of ours is slower than another contender at the same job."""
    return "\n".join(
        f"- {own.axis}, {own.dtype}, {own.task}: {own.contender} takes {number(own.ratio[1])} × the baseline, "
        f"{other.contender} {number(other.ratio[1])} ×"
        for own, other in lost
    )


def number(value: float) -> str:
    """Three digits that mean something."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; numbers stand on the right."""
    left = 2 if header[0] == "job" else 1
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = []
    for row in [header, rule, *rows]:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(entry: Entry, bandwidth: float) -> list[str]:
    low, middle, high = entry.milliseconds
    return [
        entry.task,
        entry.contender,
        number(entry.forward_milliseconds),
        number(middle),
        number(high - low),
        number(entry.ratio[1]),
        _range(entry),
        _mebibytes(entry.kept),
        _mebibytes(entry.peak),
        _share(entry, bandwidth) if entry.leaf_bytes else "–",
        "–" if not entry.leaf_bytes or entry.gradient_error is None else f"{entry.gradient_error:.0e}",
    ]


def _share(entry: Entry, bandwidth: float) -> str:
    """The bytes that must move, in the time taken, as a share of what a copy moves in it."""
    return f"{100 * entry.least_bytes / (entry.milliseconds[1] / 1000) / bandwidth:.0f} %"


def _range(entry: Entry) -> str:
    low, _, high = entry.ratio
    return f"{number(low)}–{number(high)}"


def _mebibytes(count: int | None) -> str:
    return "–" if count is None else f"{count / _MIB:.1f}"
