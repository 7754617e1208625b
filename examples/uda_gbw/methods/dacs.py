r"""DACS: learn from mixtures of source and target.

Tranheden, Olsson, Pinto and Svensson, "DACS: Domain Adaptation via Cross-domain Mixed Sampling", WACV 2021. A teacher,
the moving average of the network, labels the target; half of the classes of a source image are pasted on it:

.. math:: L = L_{source} + \frac{1}{N} \sum_i v_{y_i} q_i\, \ell_i(\text{mixed}), \qquad
          q = 1 \text{ or } \frac{1}{N} |\{i : \max_c p^T_{ic} \ge \theta\}|

q is 1 on pixels of the source, and on those of the target the share of the batch's pixels of which the teacher is sure.
It enters GBW's gradients too (the paper's equation 12); with `weighting.confidence = false` it does not (its code).

Two options are of later papers, and change what "a loss of images" is:

- HRDA: the network sees two resolutions; the loss of the fused logits and, with `hrda.detail_weight`, that of the
  detail crop. Each has its own class weights, as in GBW's code.
- MIC (Hoyer et al., CVPR 2023): one more loss, of target images with blocks hidden, against the same pseudo-labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from examples.common.distributed import all_sum, world_size
from examples.common.ema import ema_teacher
from examples.common.mixing import class_masks, visible_blocks
from examples.common.sampling import generator, seed_of
from examples.common.scenes.batches import Images
from examples.common.scenes.strong import StrongView
from examples.common.windows import draw_box
from examples.uda_gbw.config import Config
from examples.uda_gbw.data import Classes
from examples.uda_gbw.methods.base import Method, labels_of, present
from examples.uda_gbw.mixing import Mixed, class_mix
from examples.uda_gbw.networks.segmenter import Seen

# The streams of random numbers; those of the data are 0 to 2 and 8 to 10.
_MASKED_VIEW, _MIX, _BLOCKS, _BOX, _MIXED_VIEW = 7, 11, 12, 13, 15


class Dacs(Method):
    """Self-training on mixed images."""

    def __init__(self, config: Config, classes: Classes) -> None:
        super().__init__(config, classes)
        rule = config.self_training
        self.teacher = ema_teacher(self.student, self.student, rule.ema_decay, warmup=rule.ema_warmup)
        self.strong = StrongView(rule.strength)

    def loss_names(self) -> Sequence[str]:
        """Of the source, of mixed and, with MIC, of masked images."""
        return ("source", "mixed", "masked") if self.config.mic.enabled else ("source", "mixed")

    def train(self, mode: bool = True) -> Dacs:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def step(self, source: Images, target: Images | None, number: int) -> dict[str, Tensor]:
        """See above."""
        target = present(target)
        logged = self.learn_source(source, number)
        pseudo, confidence = self.pseudo_labels(target.image)

        mixed = self.mix(source, target, pseudo, confidence)
        view = self.strong(mixed.image, self.seeds(target, _MIXED_VIEW))
        loss = self.loss_of("mixed", self.see(view, number), mixed.label, mixed.confidence)
        loss.backward()
        logged |= {"mixed": loss.detach(), "confidence": confidence.mean()}

        if self.config.mic.enabled:
            view = self.strong(target.image, self.seeds(target, _MASKED_VIEW)) * self.visible(target)
            loss = self.config.mic.weight * self.loss_of("masked", self.see(view, number), pseudo, confidence)
            loss.backward()
            logged["masked"] = loss.detach()
        parts = [value for name, value in logged.items() if name != "confidence"]
        return {"loss": torch.stack(parts).sum(), **logged}

    def learn_source(self, source: Images, number: int) -> dict[str, Tensor]:
        """Collect the gradient of the source's loss."""
        loss = self.loss_of("source", self.see(source.image, number), labels_of(source))
        loss.backward()
        return {"source": loss.detach()}

    def after_step(self) -> None:
        """The teacher follows."""
        self.teacher.update_parameters(self.student)

    def see(self, images: Tensor, number: int) -> Seen:
        """A pass of the network; with two resolutions, on the step's window."""
        if not self.config.hrda.enabled:
            return self.student.see(images)
        draws = generator(self.config.training.seed, number, _BOX)
        return self.student.see(images, draw_box(images.shape[-2], images.shape[-1], draws))

    def loss_of(self, name: str, seen: Seen, label: Tensor, confidence: Tensor | None = None) -> Tensor:
        """A loss by name; with two resolutions, that of both outputs."""
        loss: Tensor = self.losses[name](seen.logits, label, confidence)
        if seen.detail is None or seen.box is None:
            return loss
        inside = None if confidence is None else confidence[seen.box.place].contiguous()
        detail = self.losses[f"{name}_detail"](seen.detail, label[seen.box.place].contiguous(), inside)
        share = self.config.hrda.detail_weight
        return (1 - share) * loss + share * detail

    @torch.no_grad()
    def pseudo_labels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's classes of target images, and their confidence q: both (N, H, W)."""
        rule = self.config.self_training
        probability, label = self.teacher(images).float().softmax(1).max(1)
        sure = all_sum((probability >= rule.threshold).float().mean()) / world_size()
        confidence = sure.expand(label.shape).clone()
        confidence[:, : rule.ignore_top] = 0
        confidence[:, label.shape[1] - rule.ignore_bottom :] = 0
        return label, confidence

    def mix(self, source: Images, target: Images, pseudo: Tensor, confidence: Tensor) -> Mixed:
        """Each source image's classes on the target image of the same place in the batch."""
        label = labels_of(source)
        masks = class_masks(label, self.seeds(target, _MIX))
        return class_mix(masks, source.image, label, target.image, pseudo, confidence)

    def visible(self, target: Images) -> Tensor:
        """MIC's masks (N, 1, H, W) of 0 and 1."""
        rule, size = self.config.mic, target.image.shape[-2:]
        return visible_blocks(size, rule.block, rule.ratio, self.seeds(target, _BLOCKS)).to(
            target.image.device
        )

    def seeds(self, images: Images, stream: int) -> list[int]:
        """One for each image of the run, whatever rank it falls to."""
        return [seed_of(self.config.training.seed, position, stream) for position in images.positions]

    def predictor(self) -> nn.Module:
        """The network that is scored."""
        return self.teacher if self.config.training.evaluate == "teacher" else self.student
