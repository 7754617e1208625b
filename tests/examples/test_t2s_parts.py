"""T2S-DA's Fourier style, mixed images, pull step and feature metrics, each against its formula."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("kornia")

from classbalance_losses import PullLoss
from classbalance_losses.functional import class_confidence_weights
from examples.common.feature_distance import ClassCentres, Discrimination
from examples.common.fourier import fourier_style
from examples.common.mixing import class_masks
from examples.t2s_da.config import PullConfig, ReweightingConfig
from examples.t2s_da.mixing import confident_shares, mixed_loss
from examples.t2s_da.pull import Labelled, Pull
from examples.t2s_da.reweighting import ClassWeights

C, IGNORED = 4, 255


def _images(size=(10, 13), n=2):
    torch.manual_seed(0)
    return torch.rand(2, n, 3, *size, dtype=torch.float64)


@pytest.mark.parametrize("size", [(10, 13), (9, 12)])
@pytest.mark.parametrize("window", ["numpy", "torch"])
def test_fourier_style_is_equation_8_frequency_by_frequency(size, window):
    """Rows and columns −b..b (numpy), −b..b−1 (torch) get the style's amplitude; phase and the rest are kept."""
    content, style = _images(size)
    b = 2
    found = fourier_style(content, style, beta=2.01 / min(size), window=window)
    own, other = torch.fft.fft2(content), torch.fft.fft2(style)
    wanted = own.clone()
    last = b if window == "numpy" else b - 1
    for row, column in product(range(-b, last + 1), repeat=2):
        place = (..., row % size[0], column % size[1])
        wanted[place] = own[place] / own[place].abs() * other[place].abs()
    torch.testing.assert_close(found, torch.fft.ifft2(wanted).real)


def test_numpys_window_keeps_the_phase_and_takes_the_amplitude():
    """Its window is symmetric, so that the result's own transform has exactly what was put in."""
    content, style = _images((11, 14))
    changed = torch.fft.fft2(fourier_style(content, style, beta=0.2))
    own, other = torch.fft.fft2(content), torch.fft.fft2(style)
    low = torch.zeros(11, 14, dtype=torch.bool)
    low[torch.arange(-2, 3)[:, None], torch.arange(-2, 3)] = True
    torch.testing.assert_close(changed.abs(), torch.where(low, other.abs(), own.abs()))
    torch.testing.assert_close(changed / changed.abs(), own / own.abs())


@pytest.mark.parametrize(("beta", "window"), [*product((0.0, 0.1, 0.5), ("numpy", "torch"))])
def test_an_images_own_style_changes_nothing(beta, window):
    content, _ = _images()
    torch.testing.assert_close(fourier_style(content, content, beta, window), content)


def test_without_a_pixel_of_window_the_means_alone_are_exchanged_or_nothing():
    content, style = _images()
    torch.testing.assert_close(fourier_style(content, style, 0.0, "torch"), content)
    moved = style.mean((2, 3), keepdim=True) - content.mean((2, 3), keepdim=True)
    for beta in (0.0, 0.09):  # less than a tenth of ten pixels
        torch.testing.assert_close(fourier_style(content, style, beta), content + moved)


def test_fourier_style_refuses():
    content, style = _images()
    with pytest.raises(ValueError, match="one shape"):
        fourier_style(content, style[..., :-1])
    with pytest.raises(ValueError, match=r"beta must be in \[0, 0.5\]"):
        fourier_style(content, style, 0.6)
    with pytest.raises(ValueError, match="window must be one of 'numpy', 'torch'"):
        fourier_style(content, style, window="hann")


def test_half_of_the_classes_are_pasted_whatever_the_batch():
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (3, 6, 7))
    labels[0, :2] = IGNORED
    labels[2] = IGNORED
    masks = class_masks(labels, [5, 6, 7])
    assert not masks[2].any()
    for label, mask in zip(labels[:2], masks[:2], strict=True):
        pasted, left = set(label[mask].tolist()), set(label[~mask].tolist()) - {IGNORED}
        assert not pasted & left
        assert IGNORED not in pasted
        assert len(pasted) == math.ceil(len(pasted | left) / 2)
    assert torch.equal(class_masks(labels[1:2], [6])[0], masks[1])
    others = torch.stack([class_masks(labels[1:2], [seed])[0] for seed in range(8)])
    assert not (others == masks[1]).flatten(1).all(1).all()


def test_confident_shares_are_of_an_image_or_of_the_batch():
    confidence = torch.tensor([[[0.99, 0.5]], [[0.99, 0.98]]])
    assert confident_shares(confidence, 0.968, "image").tolist() == [0.5, 1.0]
    assert confident_shares(confidence, 0.968, "batch").tolist() == [0.75, 0.75]
    assert confident_shares(confidence, 0.99, "image").tolist() == [0.0, 0.0]  # above, not at


def test_the_mixed_loss_divides_by_pixels_and_not_by_weights():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, C, 3, 5), torch.randint(0, C, (2, 3, 5))
    labels[0, 0] = IGNORED
    weight = torch.rand(2, 3, 5)
    total = sum(
        weight[n, y, x] * -logits[n, :, y, x].log_softmax(0)[labels[n, y, x]]
        for n, y, x in product(range(2), range(3), range(5))
        if labels[n, y, x] != IGNORED
    )
    assert mixed_loss(logits, labels, weight) == pytest.approx(float(total) / 25, rel=1e-5)
    assert mixed_loss(logits, labels, torch.zeros(2, 3, 5)) == 0
    assert mixed_loss(logits, torch.full_like(labels, IGNORED), weight) == 0


def _features(seed=0):
    torch.manual_seed(seed)
    student, source, target = (torch.randn(2, 6, 4, 5) for _ in range(3))
    labels = torch.randint(0, C, (2, 4, 5))
    labels[0, 0, :3] = IGNORED
    return student.requires_grad_(), labels, source, target, torch.randn(2, C, 4, 5).softmax(1)


def _weight(p):
    return class_confidence_weights(*p.max(1), C)


def _pull(seed=0, **options):
    """The loss where n and m take every pixel, so that nothing is left to chance."""
    options = {"queries_per_class": 100, "negatives": 200, **options}
    student, labels, source, target, p = _features(seed)
    confidence, guess = p.max(1)
    known = Labelled(source, labels)
    loss = Pull(PullConfig(**options), C)(
        Labelled(student, labels),
        known,
        known,
        Labelled(target, guess),
        confidence,
        _weight(p),
        torch.Generator().manual_seed(seed),
    )
    loss.backward()
    return loss.detach(), student.grad


def _wanted(kinds, tau=0.2):
    """Equation 5 over all queries, with the negatives of equations 12 to 15 that `kinds` names, by loops."""
    student, labels, source, target, p = _features()
    q, k, t = (F.normalize(x.movedim(1, -1).reshape(40, 6), dim=1) for x in (student, source, target))
    y = labels.flatten()
    confidence, guess = (x.flatten() for x in p.max(1))
    unreliable = confidence < confidence.sort().values[20]
    means = torch.stack([source.movedim(1, -1).reshape(40, 6)[y == c].mean(0) for c in range(C)])
    conf = torch.stack([confidence[guess == c].mean() for c in range(C)])
    weight = (1 - conf).sqrt()
    total = torch.zeros(())
    for c in range(C):
        away = []
        if "source" in kinds:
            away += [k[(y != c) & (y != IGNORED)]]
        if "target" in kinds:
            away += [t[unreliable & (guess != c)]]
        negatives = torch.cat(away)
        positive = q[y == c] @ F.normalize(means[c], dim=0) / tau
        logits = torch.cat([positive[:, None], q[y == c] @ negatives.T / tau], 1)
        total = total + weight[c] / weight.sum() * (logits.logsumexp(1) - positive).mean()
    return total.detach() / C


@pytest.mark.parametrize(
    ("choice", "kinds"),
    [
        ("both", ("source", "target")),
        ("pooled", ("source", "target")),
        ("source", ("source",)),
        ("target", ("target",)),
    ],
)
def test_negatives_come_from_where_the_choice_says(choice, kinds):
    found, gradient = _pull(negatives_from=choice)
    assert found == pytest.approx(float(_wanted(kinds)), rel=1e-5)
    assert gradient.abs().sum() > 0


def test_a_pool_is_drawn_by_numbers_and_both_by_halves():
    """With few negatives the draws differ; every choice takes m of them."""
    found = {}
    for choice in ("both", "pooled", "source", "target"):
        values = [float(_pull(seed, negatives=4, negatives_from=choice)[0]) for seed in range(3)]
        assert all(0 < value < math.log(5 * math.exp(10)) / C for value in values)
        found[choice] = values
    assert len({tuple(values) for values in found.values()}) == 4


def test_the_papers_choices_are_the_librarys_loss():
    student, labels, source, target, p = _features()
    loss = PullLoss(num_classes=C, ignore_index=IGNORED, queries_per_class=3, negatives=6, momentum=0.0)
    wanted = loss(
        student,
        labels,
        source_features=source,
        source_labels=labels,
        target_features=target,
        target_probabilities=p,
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(_pull(queries_per_class=3, negatives=6)[0], wanted)


def test_prototypes_are_of_what_is_given_and_negatives_stay_where_they_are():
    """Table 7's keys: with MSE the loss is the distance to the class means of any place."""
    student, labels, source, target, p = _features()
    confidence, guess = p.max(1)
    pull = Pull(PullConfig(objective="mse", queries_per_class=100), C)
    even = torch.full((C,), 1 / C)
    queries, own, other = Labelled(student, labels), Labelled(source, labels), Labelled(target, guess)
    found = pull(queries, other, own, other, confidence, even, torch.Generator())
    q = F.normalize(student.movedim(1, -1).reshape(40, 6), dim=1)
    y, rows = labels.flatten(), target.movedim(1, -1).reshape(40, 6)
    total = sum(
        (q[y == c] - F.normalize(rows[guess.flatten() == c].mean(0), dim=0)).square().sum(1).mean()
        for c in range(C)
    )
    torch.testing.assert_close(found, total / C**2)
    contrast = Pull(PullConfig(queries_per_class=100, negatives=200), C)
    values = [
        float(contrast(queries, place, own, other, confidence, even, torch.Generator()).detach())
        for place in (own, other)
    ]
    assert values[0] != values[1]


def test_how_many_queries_of_each_class():
    n = 2
    labels = _features()[1].flatten()
    has = [int((labels == c).sum()) for c in range(C)]
    drawn = {}
    for choice in ("balanced", "random", "equal"):
        _, gradient = _pull(objective="mse", queries_per_class=n, queries=choice)
        used = (gradient != 0).any(1).flatten()
        assert not used[labels == IGNORED].any()
        drawn[choice] = [int(used[labels == c].sum()) for c in range(C)]
    assert drawn["balanced"] == [math.ceil(C * count / sum(has) * n) for count in has]
    assert sum(drawn["random"]) == C * n
    assert drawn["equal"] == [min(n, count) for count in has]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("absent", ["carry", "max", "exclude"])
def test_the_class_weights_are_the_librarys_over_steps_of_which_one_lacks_a_class(momentum, absent):
    rule = {"momentum": momentum, "absent": absent}
    weights = ClassWeights(ReweightingConfig(**rule), C)
    loss = PullLoss(num_classes=C, ignore_index=IGNORED, objective="mse", **rule)
    student, labels, source, target, _ = _features()
    for step in range(3):
        torch.manual_seed(step)
        logits = torch.randn(2, C, 4, 5)
        logits[:, 2] -= 9 * (step == 1)
        loss(
            student,
            labels,
            source_features=source,
            source_labels=labels,
            target_features=target,
            target_probabilities=logits.softmax(1),
        )
        torch.testing.assert_close(weights.update(logits.softmax(1)), loss.class_weight)
        assert loss.class_weight.unique().numel() > 1
    assert torch.equal(
        ClassWeights(ReweightingConfig(of="none"), C).update(logits.softmax(1)), torch.full((C,), 1 / C)
    )


def test_as_printed_the_weights_are_equations_17_and_18_of_the_batch():
    torch.manual_seed(0)
    p = torch.randn(2, C, 6, 7).softmax(1)
    confidence, guess = p.max(1)
    doubt = torch.stack([1 - confidence[guess == c].mean() for c in range(C)])
    wanted = (doubt / doubt.max()) ** 0.5
    weights = ClassWeights(ReweightingConfig(), C)
    for _ in range(2):  # whatever was before
        found = weights.update(p)
        torch.testing.assert_close(found, wanted / wanted.sum())
        weights.class_confidence.fill_(0.3)


def test_bad_pull_options_are_refused():
    for options in ({"temperature": 0.0}, {"negatives": 3}, {"unreliable_fraction": 2.0}):
        with pytest.raises(ValueError, match=next(iter(options)).replace("unreliable_", "")):
            PullConfig(**options)
    for options in ({"power": -1.0}, {"momentum": 2.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ReweightingConfig(**options)
    with pytest.raises(ValueError, match="has no negatives"):
        replace(PullConfig(), objective="mse", negatives_from="target")


def test_the_mixed_loss_weighs_a_pixel_by_its_label():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, C, 3, 5), torch.randint(0, C, (2, 3, 5))
    labels[0, 0] = IGNORED
    weight, by_class = torch.rand(2, 3, 5), torch.rand(C)
    each = by_class[labels.where(labels != IGNORED, 0)]
    assert mixed_loss(logits, labels, weight, by_class) == pytest.approx(
        float(mixed_loss(logits, labels, weight * each)), rel=1e-6
    )


def test_feature_distances_are_their_formulas_over_any_number_of_maps():
    torch.manual_seed(0)
    features, labels = torch.rand(3, 5, 4, 6), torch.randint(0, 3, (3, 4, 6))
    labels[0, 0] = IGNORED
    x, y = features.movedim(1, -1).reshape(-1, 5).double(), labels.flatten()
    mean = [x[y == c].mean(0) for c in range(3)]
    ccd, pdd = [], []
    for i in range(3):
        spread = (x[y == i] - mean[i]).square().sum(1).mean()
        ccd.append(sum(spread / (mean[i] - mean[j]).square().sum() for j in range(3) if j != i) / 2)
        cosine = [F.cosine_similarity(x[y == i], m[None]) for m in mean]
        pdd.append(1 - (cosine[i] / sum(cosine[j] for j in range(3) if j != i)).mean())
    centres = ClassCentres(4, 5)  # the fourth class has no pixel
    for one, label in zip(features.split(1), labels.split(1), strict=True):
        centres.update(one, label)
    shares = Discrimination(centres.centres())
    shares.update(features[:1], labels[:1])
    shares.update(features[1:], labels[1:])
    nan = torch.tensor([torch.nan])
    wanted = [torch.cat([torch.stack(values), nan]) for values in (ccd, pdd)]
    torch.testing.assert_close(centres.distance(), wanted[0], equal_nan=True, rtol=1e-9, atol=0)
    torch.testing.assert_close(shares.value(), wanted[1], equal_nan=True, rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match="at least 2"):
        ClassCentres(1, 5)


def test_tighter_classes_have_smaller_ccd_and_pdd():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (1, 20, 20))
    found = []
    for noise in (0.1, 1.0):
        features = F.one_hot(labels, 3).movedim(-1, 1) + noise * torch.rand(1, 3, 20, 20)
        centres = ClassCentres(3, 3)
        centres.update(features, labels)
        shares = Discrimination(centres.centres())
        shares.update(features, labels)
        found.append((centres.distance().mean(), shares.value().mean()))
    (tight, clear), (wide, blurred) = found
    assert tight < wide
    assert clear < blurred
