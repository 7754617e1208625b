"""The pull step as the configuration asks for it: the paper's, or what an ablation puts in the place of a part."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from classbalance_losses import functional as losses
from examples.common.scenes.labels import IGNORE_INDEX
from examples.t2s_da.config import PullConfig


class Labelled(NamedTuple):
    """The projector's features (N, d, h, w) of images, and a label for each (N, h, w)."""

    features: Tensor
    labels: Tensor


class Pull(nn.Module):
    """Equation 5 over drawn queries, class prototypes, and drawn negatives.

    With the default choices this is `classbalance_losses.PullLoss`, whose class weights come from outside here. Where
    queries and prototypes are taken from (Table 7), the caller says by what it gives.

    `config.queries`: how a batch's queries, about C·n of them, are chosen.

    * "balanced", the paper's CBQS: n_q(c) = ⌈C p_c n⌉ of class c. Nearly in proportion to the classes, but none has
      zero.
    * "equal": n of each class, or all where there are fewer: CEQS, which §3.4 names as the plain alternative.
    * "random": C·n of all labelled pixels, whatever their classes: the text on Table 8 tells of queries swamped by
      large classes, which this gives and "equal" does not.

    `config.negatives_from`: where a query's m negatives come from.

    * "both", the paper's DENPS: half from each domain.
    * "pooled": from the other-class source pixels and the unreliable target pixels together, by their numbers.
    * "source" or "target": m from one domain alone. Domain generalisation has the source's alone.

    Args:
        config: the loss's options.
        num_classes: C.
    """

    def __init__(self, config: PullConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes

    def forward(
        self,
        queries: Labelled,
        prototypes_of: Labelled,
        source: Labelled,
        target: Labelled | None,
        confidence: Tensor | None,
        class_weight: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """The loss.

        Args:
            queries: the student's; the gradient goes to them alone.
            prototypes_of: the teacher's, of which k+ are the class means (equation 10).
            source: the teacher's, for negatives (equation 12).
            target: the teacher's with its pseudo-labels, for negatives (equation 13); None where none are taken.
            confidence: the teacher's largest probability at the target's features, (N, h, w).
            class_weight: w*, (C,).
            generator: of the draws, on the features' device.
        """
        config, classes = self.config, self.num_classes
        labels = self._asked(queries.labels, generator)
        drawn, asked = losses.sample_class_balanced(
            labels,
            classes,
            samples_per_class=config.queries_per_class,
            ignore_index=IGNORE_INDEX,
            generator=generator,
        )
        prototypes = losses.class_prototypes(
            *prototypes_of, classes, ignore_index=IGNORE_INDEX, process_group="world"
        )
        negatives, valid = None, None
        if config.objective == "infonce":
            negatives, valid = self._negatives(source, target, confidence, generator)
        return losses.pull_loss(
            _rows(queries.features)[drawn],
            labels.flatten()[drawn],
            prototypes,
            negatives,
            class_weight,
            objective=config.objective,
            temperature=config.temperature,
            pair_reduction=config.pair_reduction,
            query_mask=asked,
            negative_mask=valid,
            ignore_index=IGNORE_INDEX,
            process_group="world",
        )

    def _asked(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The labels of the pixels that may become queries, elsewhere ignored.

        Of at most C·n labelled pixels class-balanced sampling takes every one, as ⌈C p_c n⌉ >= n_c.
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

    def _negatives(
        self,
        source: Labelled,
        target: Labelled | None,
        confidence: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Vectors (C, m, d) for the queries of each class, and the mask (C, m) of those that count.

        Half of what is drawn comes from each of two pools. Where there is one pool alone, 2m are drawn, and the second
        half is of a pixel that never counts.
        """
        config = self.config
        pools = []
        if config.negatives_from != "target":
            pools.append((_rows(source.features).detach(), source.labels.flatten()))
        if config.negatives_from != "source":
            assert target is not None
            assert confidence is not None
            unreliable = losses.unreliable_pixels(
                confidence, fraction=config.unreliable_fraction, process_group="world"
            )
            known = torch.where(unreliable, target.labels, IGNORE_INDEX).flatten()
            pools.append((_rows(target.features).detach(), known))
        if config.negatives_from != "both":
            joined = tuple(torch.cat(parts) for parts in zip(*pools, strict=True))
            pools = [joined, (joined[0][:1], torch.full_like(joined[1][:1], IGNORE_INDEX))]
        (first, first_labels), (second, second_labels) = pools
        drawn, valid, others, others_valid = losses.sample_domain_equal_negatives(
            first_labels,
            second_labels,
            second_labels != IGNORE_INDEX,
            self.num_classes,
            samples=config.negatives * (1 if config.negatives_from == "both" else 2),
            ignore_index=IGNORE_INDEX,
            generator=generator,
        )
        return torch.cat([first[drawn], second[others]], 1), torch.cat([valid, others_valid], 1)


def _rows(features: Tensor) -> Tensor:
    """A map (N, d, h, w) as vectors (N·h·w, d)."""
    return features.movedim(1, -1).flatten(0, -2)
