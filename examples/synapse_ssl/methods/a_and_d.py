"""A&D: a diffusion model and a difficulty-weighted decoder label what a third decoder learns from.

Wang and Li, "Towards Generic Semi-supervised Framework for Volumetric Medical Image Segmentation", NeurIPS 2023, as its
release, GenericSSL, computes it. One encoder, three decoders (`diffusion_network.py`):

    supervised    CE + Dice of xi, which cleans a label of noise of a random strength beside its image,
                  + CE + Dice of psi, both weighted by difficulty: DiffDW of xi's predictions, not scaled to a maximum
    unsupervised  CE + Dice of theta on labels that xi and psi give to unlabelled patches:
                  argmax(smoothed softmax(x + Gumbel noise) + softmax(psi)), x sampled from xi in ten steps

The smoothing is a Gaussian of deviation 1 over 3 x 3 x 3 voxels. Before each step theta moves by 1 % towards the mean
of xi and psi; xi's parameters of the time have no counterpart in it. Theta is what is scored.

With DyCE, both cross-entropies of the supervised term are replaced; psi's loses its class weights with it, as in DHC.

Left out is the release's own augmentation (three at random of rotation, scaling, distortions and intensity changes):
crops and mirroring are those of the other methods, so that rows differ by the method alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.sampling import seed_of
from examples.synapse_ssl.class_weights import DiffDW
from examples.synapse_ssl.config import Config, SupervisedConfig
from examples.synapse_ssl.data.batches import Patches
from examples.synapse_ssl.diffusion import TIMES, noised, sample
from examples.synapse_ssl.diffusion_network import DiffusionVNet
from examples.synapse_ssl.losses import SupervisedLoss
from examples.synapse_ssl.methods.base import Method, Terms, label_of

_KEPT = 0.99  # of theta
_STREAM = 7  # of random numbers


class AAndD(Method):
    """A diffusing, a difficulty-weighted and a student decoder."""

    scale = 1.0

    def __init__(self, config: Config, class_counts: Tensor) -> None:
        super().__init__(config, class_counts)
        model = config.model
        if model.network != "diff_vnet":
            raise ValueError(f'model.network must be "diff_vnet" for a_and_d, got "{model.network}"')
        self.student = DiffusionVNet(self.num_classes, model.features, config.data.patch, model.dropout)
        self.difficulty = DiffDW(self.num_classes, config.dhc.window, scaled=False)
        self.imitate = SupervisedLoss(SupervisedConfig(), 1.0)

    def terms(self, batch: Mapping[str, Patches], step: int) -> Terms:
        """See above."""
        net, labelled, unlabelled = self.student, batch["labelled"], batch["unlabelled"].image
        label, draws = label_of(labelled), self._draws(unlabelled.device, step)
        self.mix()
        clean = 2 * F.one_hot(label, self.num_classes).movedim(-1, 1).float() - 1
        time = torch.randint(TIMES, (len(clean),), generator=draws, device=clean.device)
        noise = torch.randn(clean.shape, generator=draws, device=clean.device)
        cleaned = self.logits(net.denoised, noised(clean, time, noise), time, labelled.image)
        guided = self.logits(net.guided, labelled.image)
        hard = self.difficulty(cleaned.argmax(1), label)
        pseudo = self._pseudo_label(unlabelled, draws)
        return Terms(
            self.supervised(cleaned, label) + self.supervised(guided, label, hard),
            self.imitate(self.logits(net, unlabelled), pseudo),
            {"highest_difficulty": hard.argmax(), "foreground": (pseudo > 0).float().mean()},
        )

    def predict(self, images: Tensor) -> Tensor:
        """Theta's logits."""
        return self.logits(self.student, images)

    @torch.no_grad()
    def mix(self) -> None:
        """Move theta towards the mean of xi and psi."""
        others = [dict(decoder.named_parameters()) for decoder in (self.student.xi, self.student.psi)]
        for name, value in self.student.theta.named_parameters():
            mean = (others[0][name] + others[1][name]) / 2
            value.mul_(_KEPT).add_(mean, alpha=1 - _KEPT)

    @torch.no_grad()
    def _pseudo_label(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Class indices (N, *) of unlabelled images (N, 1, *)."""

        def denoise(noisy: Tensor, time: Tensor) -> Tensor:
            return self.logits(self.student.denoised, noisy, time, images)

        shape = (len(images), self.num_classes, *images.shape[2:])
        sampled = sample(denoise, torch.randn(shape, generator=draws, device=images.device))
        gumbel = -torch.empty_like(sampled).exponential_(generator=draws).log()
        votes = smoothed((sampled + gumbel).softmax(1)) + self.logits(self.student.guided, images).softmax(1)
        return votes.argmax(1)

    def _draws(self, device: torch.device, step: int) -> torch.Generator:
        """On the device, where this much noise is drawn fast; it depends on the seed and the step alone."""
        return torch.Generator(device).manual_seed(seed_of(self.config.training.seed, step, _STREAM))


def smoothed(volume: Tensor) -> Tensor:
    """Volumes (N, C, D, H, W) under a Gaussian of deviation 1 over three voxels an axis, 0 beyond the border."""
    weight = torch.exp(-(torch.tensor([-1.0, 0.0, 1.0], device=volume.device) ** 2) / 2)
    weight = weight / weight.sum()
    flat = volume.flatten(0, 1)[:, None]
    for axis in range(3):
        shape, padding = [1] * 5, [0] * 3
        shape[2 + axis], padding[axis] = 3, 1
        flat = F.conv3d(flat, weight.view(shape), padding=padding)
    return flat.view_as(volume)
