"""Run every law on a loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from classbalance_losses.testing.laws import LAWS, Law
from classbalance_losses.testing.problem import Problem
from classbalance_losses.testing.report import FAILS, HOLDS, NOT_APPLICABLE, SKIPPED, Report, Result
from classbalance_losses.testing.subject import Loss, Subject, subject_of
from classbalance_losses.testing.violation import ViolationError

_SHRUNK = 1024  # pixels up to which each is tried alone


def check_loss(
    loss_fn: Loss,
    *,
    task: str = "multiclass",
    num_classes: int = 4,
    neutral: bool = False,
    options: Collection[str] | None = None,
    ignore_index: int | None = None,
    dims: Sequence[int] = (0, 1, 2, 3),
    only: Collection[str] | None = None,
    skip: Collection[str] | Mapping[str, str] = (),
) -> Report:
    """Try the laws of a per-pixel loss on any loss of logits (N, C, *) and class indices (N, *).

    A law is tried on inputs of rising size, on the CPU, and stops at the first that breaks it; a broken law shows
    what was expected, what came, and that input. A law that needs an option which the loss does not have is
    "not applicable", with the reason, and one that the caller leaves out is "skipped": neither counts as held.

    Args:
        loss_fn: a function ``loss_fn(input, target, **options)``, a module, or the class of one. A class is built
            anew for each call, with the options that its constructor takes; settings are bound by
            ``functools.partial(FocalLoss, gamma=1.0)``.
        task: "multiclass", or "binary" for a loss of one logit (N, 1, *) and labels 0 and 1 (N, *): it is tried as the
            loss of two classes that it is, by the difference of their logits.
        num_classes: C of every input, at least 2; for "binary" 2.
        neutral: whether it is ``torch.nn.functional.cross_entropy``, or ``binary_cross_entropy_with_logits``, with
            these settings.
        options: which it takes of ``ignore_index``, ``reduction`` ("none", "sum", "mean"), ``weight`` (C,),
            ``pixel_weight`` (N, *) and ``process_group``. By default read off its signature. A loss with other
            words, or another shape of target, is wrapped in a function.
        ignore_index: the label that it ignores where that is not an option; by default a module's own
            ``ignore_index``.
        dims: numbers of spatial axes that it takes, from 0 to 3.
        only: names of the laws to try; the others are skipped. All by default.
        skip: names of the laws not to try, or a mapping of them to the reasons.

    Returns:
        A report: true where no law fails and one holds; as a string a table.

    Raises:
        ValueError: for settings out of range, names of no law, or a loss whose signature does not tell its options.

    Note:
        The law "ranks" starts two processes: the loss must be one that ``pickle`` can send (defined at a module's
        top level), and a script needs its ``if __name__ == "__main__":``. The law "compile" empties the caches
        of ``torch.compile``.
    """
    axes = tuple(sorted(set(dims)))
    if num_classes < 2:
        raise ValueError(f"Expected num_classes >= 2, got {num_classes}.")
    if not axes or not set(axes) <= {0, 1, 2, 3}:
        raise ValueError(f"Expected dims among 0, 1, 2 and 3, got {tuple(dims)}.")
    if task not in ("multiclass", "binary"):
        raise ValueError(
            f'Expected task "multiclass" or "binary", got {task!r}. Many labels are as many binary pixels.'
        )
    reasons = _reasons(only, skip)
    subject = subject_of(
        loss_fn,
        num_classes=2 if task == "binary" else num_classes,
        one_logit=task == "binary",
        dims=axes,
        options=options,
        ignore_index=ignore_index,
        neutral=neutral,
    )
    return Report(subject.name, tuple(_result(law, subject, reasons.get(law.name)) for law in LAWS))


def _reasons(only: Collection[str] | None, skip: Collection[str] | Mapping[str, str]) -> dict[str, str]:
    """Why each law that is left out is."""
    if isinstance(only, str) or isinstance(skip, str):
        raise ValueError('Expected a collection of names in only and skip, got a str. Write ("ranks",).')
    names = [law.name for law in LAWS]
    unknown = sorted({*skip, *(only or ())} - set(names))
    if unknown:
        raise ValueError(f"Expected names of laws, {', '.join(names)}; got {', '.join(unknown)}.")
    left_out = {} if only is None else dict.fromkeys(set(names) - set(only), "not among those asked for")
    given = skip if isinstance(skip, Mapping) else dict.fromkeys(skip, "left out by the caller")
    return {**left_out, **given}


def _result(law: Law, subject: Subject, reason: str | None) -> Result:
    if reason is not None:
        return Result(law.name, law.says, SKIPPED, why=reason)
    missing = law.missing(subject)
    if missing:
        return Result(law.name, law.says, NOT_APPLICABLE, why=missing)
    for problem in law.problems(subject):
        violation = _violation(law, subject, problem)
        if violation is not None:
            smallest, violation = _shrunk(law, subject, problem, violation)
            return Result(
                law.name,
                law.says,
                FAILS,
                expected=violation.expected,
                came=violation.came,
                problem=smallest,
            )
    return Result(law.name, law.says, HOLDS)


def _violation(law: Law, subject: Subject, problem: Problem) -> ViolationError | None:
    try:
        law.check(subject, problem)
    except ViolationError as violation:
        return violation
    return None


def _shrunk(
    law: Law, subject: Subject, problem: Problem, violation: ViolationError
) -> tuple[Problem, ViolationError]:
    """One pixel that breaks the law alone, if there is one."""
    if law.shrinks and 1 < problem.target.numel() <= _SHRUNK:
        for index in range(problem.target.numel()):
            pixel = problem.pixel(index)
            alone = _violation(law, subject, pixel)
            if alone is not None:
                return pixel, alone
    return problem, violation
