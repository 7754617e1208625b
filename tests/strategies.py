"""What hypothesis draws: whole batches, class gradients for the projection, losses for mining.

Numbers come from a seeded generator rather than from hypothesis itself: shapes, labels and masks are what shrinks
usefully, and round logits would tie at the mining threshold, where two ways to compute the same loss may round apart
(ties have tests of their own).
"""

from __future__ import annotations

import numpy as np
import torch
from cases import FEATURES, Sample
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


@st.composite
def samples(draw: st.DrawFn, *, max_side: int = 4, max_classes: int = 6) -> Sample:
    """Any rank from 0 to 3, any share of ignored pixels (all included), with or without a weight a pixel."""
    rank = draw(st.integers(0, 3), label="rank")
    shape = (
        draw(st.integers(1, 3), label="images"),
        *draw(st.tuples(*[st.integers(1, max_side)] * rank), label="space"),
    )
    classes = draw(st.integers(2, max_classes), label="classes")
    ignore_index = draw(st.sampled_from([-100, -1, 255, 0]), label="ignore_index")
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    labels = [c for c in range(classes) if c != ignore_index]
    labels = draw(
        st.lists(st.sampled_from(labels), min_size=1, max_size=classes, unique=True), label="labels"
    )
    target = rng.choice(labels, size=shape)
    target[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]), label="ignored")] = ignore_index
    scale = draw(st.sampled_from([0.1, 2.0, 10.0]), label="scale")
    weighted = draw(st.booleans(), label="weighted")
    return Sample(
        input=torch.from_numpy(rng.normal(size=(shape[0], classes, *shape[1:])) * scale),
        target=torch.from_numpy(target).long(),
        ignore_index=ignore_index,
        pixel_weight=torch.from_numpy(rng.integers(0, 9, size=shape) / 4.0) if weighted else None,
        features=torch.from_numpy(rng.normal(size=(shape[0], FEATURES, *shape[1:]))),
    )


def class_gradients(min_size: int = 1, max_size: int = 12) -> st.SearchStrategy[np.ndarray]:
    """Squared gradient norms: equal entries, zeros and eight orders of magnitude included."""
    value = st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-6, 100.0))
    return hnp.arrays(np.float64, st.integers(min_size, max_size), elements=value)


def mining_losses(dtype: type = np.float32) -> st.SearchStrategy[np.ndarray]:
    """Losses with ties, zeros, denormals and infinities, as they come from logits and as they do not."""
    tiny = float(np.finfo(dtype).smallest_subnormal)
    special = st.sampled_from(
        [0.0, tiny, 2 * tiny, float(np.finfo(dtype).tiny), 1.0, float(np.finfo(dtype).max), float("inf")]
    )
    width = 32 if dtype is np.float32 else 64
    value = st.one_of(special, st.floats(0.0, 20.0, width=width))
    return hnp.arrays(dtype, st.integers(1, 40), elements=value)
