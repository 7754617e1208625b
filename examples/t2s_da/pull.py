"""The pull step as the configuration asks for it: `PullLoss`, or what its ablations put in the place of a part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from classbalance_losses import PullLoss
from classbalance_losses import functional as losses
from examples.common.scenes.labels import IGNORE_INDEX
from examples.t2s_da.config import PullConfig


class Pull(nn.Module):
    """`PullLoss`, with the choices of queries and of negatives that the ablations compare.

    `config.queries`: how a batch's queries, about C·n of them, are chosen.

    * "balanced", the paper's: n_q(c) = ⌈C p_c n⌉ of class c. Nearly in proportion to the classes, but none has zero.
    * "random": C·n of all labelled pixels, whatever their classes.
    * "equal": n of each class, or all where there are fewer: CEQS, the plain alternative of §3.4.

    `config.negatives_from`: where a query's m negatives come from.

    * "both", the paper's: half from each domain.
    * "pooled": from the other-class source pixels and the unreliable target pixels together, by their numbers.
    * "source" or "target": m from one domain alone.

    Table 8 removes class-balanced queries and domain-equal negatives. For the latter "pooled" stands in. For the former
    the paper has two readings: §3.4 names CEQS as the alternative; the text on the table tells of queries swamped by
    large classes, which "random" gives.

    Args:
        config: the loss's options.
        num_classes: C.
    """

    def __init__(self, config: PullConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.criterion = PullLoss(
            num_classes=num_classes, ignore_index=IGNORE_INDEX, process_group="world", **config.keywords()
        )

    def forward(
        self,
        student: Tensor,
        student_labels: Tensor,
        source: Tensor,
        source_labels: Tensor,
        target: Tensor,
        probabilities: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """The loss of student features (N, D, h, w), keys (N, D, h, w) of both domains, and p of the target."""
        labels = self._asked(student_labels, generator)
        known = {"source_features": source, "source_labels": source_labels}
        other = {"target_features": target, "target_probabilities": probabilities}
        if self.config.composed:
            self.criterion(student, labels, **known, **other, generator=generator)  # for its class_weight
            return self._composed(student, labels, source, source_labels, target, probabilities, generator)
        value: Tensor = self.criterion(student, labels, **known, **other, generator=generator)
        return value

    def _asked(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The labels of the pixels that may become queries, elsewhere ignored.

        Of at most C·n labelled pixels `PullLoss` takes every one, as ⌈C p_c n⌉ >= n_c.
        """
        number = self.config.queries_per_class
        if self.config.queries == "balanced":
            return labels
        flat = labels.flatten()
        order = torch.randperm(len(flat), generator=generator, device=flat.device)
        shuffled = flat[order]
        if self.config.queries == "random":
            chosen = order[shuffled != IGNORE_INDEX][: self.num_classes * number]
        else:
            chosen = torch.cat([order[shuffled == c][:number] for c in range(self.num_classes)])
        asked = torch.full_like(flat, IGNORE_INDEX)
        asked[chosen] = flat[chosen]
        return asked.view_as(labels)

    def _composed(
        self,
        student: Tensor,
        labels: Tensor,
        source: Tensor,
        source_labels: Tensor,
        target: Tensor,
        probabilities: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Equation 5 with negatives of one pool: both domains, or the target alone."""
        config, classes = self.config, self.num_classes
        confidence, pseudo_labels = probabilities.max(1)
        unreliable = losses.unreliable_pixels(
            confidence, fraction=config.unreliable_fraction, process_group="world"
        )
        rows = _rows(target)
        other = torch.where(unreliable, pseudo_labels, IGNORE_INDEX).flatten()
        if config.negatives_from == "pooled":
            rows, other = torch.cat([_rows(source), rows]), torch.cat([source_labels.flatten(), other])
        nothing = torch.full_like(other[:1], IGNORE_INDEX)
        # All m from the first domain's half of 2m; the second domain is one pixel that never counts.
        drawn, valid, _, _ = losses.sample_domain_equal_negatives(
            other,
            nothing,
            torch.zeros_like(nothing, dtype=torch.bool),
            classes,
            samples=2 * config.negatives,
            ignore_index=IGNORE_INDEX,
            generator=generator,
        )
        query, asked = losses.sample_class_balanced(
            labels,
            classes,
            samples_per_class=config.queries_per_class,
            ignore_index=IGNORE_INDEX,
            generator=generator,
        )
        return losses.pull_loss(
            _rows(student)[query],
            labels.flatten()[query],
            losses.class_prototypes(
                source, source_labels, classes, ignore_index=IGNORE_INDEX, process_group="world"
            ),
            rows[drawn],
            self.criterion.class_weight.clone(),
            temperature=config.temperature,
            pair_reduction=config.pair_reduction,
            query_mask=asked,
            negative_mask=valid,
            ignore_index=IGNORE_INDEX,
            process_group="world",
        )


def _rows(features: Tensor) -> Tensor:
    """A map (N, D, h, w) as vectors (N·h·w, D)."""
    return features.movedim(1, -1).flatten(0, -2)
