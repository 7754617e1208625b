"""Write the block of docs/results.md: python -m benchmarks.papers.readme."""

from __future__ import annotations

from benchmarks.papers.lines import Line, adaptation, organs, pull, semidavil, vision_language
from benchmarks.readme_block import RESULTS_PAGE, update


def papers_block() -> str:
    """One table for each pipeline, with the name of its page."""
    parts = [
        "Small stand-ins for the papers' data, on a CPU; scores in per cent, mean ± standard deviation over seeds. "
        "The gain is that of the seeds that both sides have, their number in brackets: of one seed, a point or two is "
        "chance.",
        _table("SemiDAViL's pipeline, mIoU", "cross-entropy", "DyCE", semidavil(), "semidavil/README.md"),
        _table(
            "Semi-supervised organ segmentation, Dice",
            "cross-entropy",
            "DyCE",
            [*organs("acdc_methods", "ACDC"), *organs("chaos_methods", "CHAOS")],
            "synapse_ssl/README.md",
        ),
        _table("Unsupervised adaptation, mIoU", "unweighted", "GBW", adaptation(), "uda_gbw/README.md"),
        _table("Unsupervised adaptation, mIoU", "alone", "T2S-DA's pull loss", pull(), "t2s_da/README.md"),
        _table(
            "Semi-supervised segmentation, mIoU",
            "without HVL's losses",
            "all of them",
            vision_language(),
            "hvl/README.md",
        ),
    ]
    return "\n\n".join(parts)


def _table(title: str, without: str, having: str, lines: list[Line], page: str) -> str:
    rows = [
        [title, without, having, "gain"],
        ["---", "---:", "---:", "---:"],
    ]
    rows += [line.cells() for line in lines]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{lines}\n\nIts page: `benchmarks/results/{page}`."


if __name__ == "__main__":
    update(RESULTS_PAGE, "papers", papers_block())
