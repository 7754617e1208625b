"""The mask transformer: transformers' Mask2Former, its two decoders, with queries from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)

LEVELS = 3  # L: maps that both decoders of Mask2Former attend to, 1/32, 1/16 and 1/8 of the image
_STRIDES = (4, 8, 16, 32)


class MaskTransformer(Mask2FormerPreTrainedModel):
    """Pixel decoder and transformer decoder.

    Both have Mask2Former's layers: multi-scale deformable attention, which is also what the paper's pixel decoder is
    made of, and masked attention. A query's mask is the dot product of its embedding, after Mask2Former's perceptron,
    with the mask features.

    Args:
        channels: of the encoder's four maps, at 1/4 to 1/32 of the image.
        width: of features and queries.
        heads: of the attention.
        pixel_layers: layers of deformable attention in the pixel decoder.
        decoder_layers: layers of masked attention.
    """

    def __init__(
        self, channels: Sequence[int], width: int, heads: int, pixel_layers: int, decoder_layers: int
    ) -> None:
        config = Mask2FormerConfig(
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            encoder_feedforward_dim=4 * width,
            dim_feedforward=8 * width,
            num_attention_heads=heads,
            encoder_layers=pixel_layers,
            decoder_layers=decoder_layers + 1,  # it counts the prediction before the first layer
            num_queries=1,  # its own queries are not used
            dropout=0.0,
        )
        super().__init__(config)
        self.pixel_decoder = Mask2FormerPixelDecoder(config, list(channels))
        self.transformer = Mask2FormerTransformerModule(width, config)
        for unused in (self.transformer.queries_embedder, self.transformer.queries_features):
            unused.requires_grad_(False)
        self.post_init()
        # As Mask2Former's own code has it. transformers starts this layer at a standard deviation of 0.02, for loading
        # weights over it: from scratch the masks then are flat for hundreds of steps.
        nn.init.kaiming_uniform_(self.pixel_decoder.mask_projection.weight, a=1)
        nn.init.zeros_(self.pixel_decoder.mask_projection.bias)

    def pixels(
        self, features: Sequence[Tensor], queries: Tensor, refinement: nn.ModuleList | None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """The encoder's maps through the pixel decoder, its layers interleaved with PTRM.

        Args:
            features: finest first.
            queries: of K classes at each of the three maps, the coarsest first, (N, K, L, C).
            refinement: for each layer a list of one module a map; None leaves pixels and queries apart.

        Returns:
            Mask features (N, C, H/4, W/4), the three maps, and the aligned queries (N, K, L, C).
        """
        levels = list(queries.unbind(2))
        with ExitStack() as hooks:
            for layer, modules in zip(self.pixel_decoder.encoder.layers, refinement or (), strict=False):
                hook = layer.register_forward_hook(_refining(modules, levels), with_kwargs=True)
                hooks.callback(hook.remove)
            output = self.pixel_decoder(list(pyramid(features)), return_dict=True)
        return output.mask_features, list(output.multi_scale_features), torch.stack(levels, dim=2)

    def decode(
        self, queries: Tensor, positions: Tensor, mask_features: Tensor, scales: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Queries with their positions, (N, Q, C), through all layers.

        Returns:
            The queries (N, Q, C) and their mask logits (N, Q, h, w), before the first layer and after each.
        """
        module = self.transformer
        places, maps = [], []
        for level, x in enumerate(scales):
            place = module.position_embedder(x.shape, x.device, x.dtype, None)
            flat = (
                module.input_projections[level](x).flatten(2)
                + module.level_embed.weight[level][None, :, None]
            )
            places.append(place.flatten(2).permute(2, 0, 1))
            maps.append(flat.permute(2, 0, 1))
        output = module.decoder(
            inputs_embeds=queries.transpose(0, 1),
            multi_stage_positional_embeddings=places,
            pixel_embeddings=mask_features,
            encoder_hidden_states=maps,
            query_position_embeddings=positions.transpose(0, 1),
            feature_size_list=[x.shape[-2:] for x in scales],
            return_dict=True,
        )
        states = [state.transpose(0, 1) for state in output.intermediate_hidden_states]
        return states, list(output.masks_queries_logits)


def pyramid(features: Sequence[Tensor]) -> Sequence[Tensor]:
    """Maps of an encoder at 1/4, 1/8, 1/16 and 1/32; a ViT's, which have one size (1/16), are resized to them.

    Resizing without weights is the plainest of the feature pyramids for ViTs; the pixel decoder has the layers.
    """
    if len(features) == len(_STRIDES):
        return features
    first, second, last = features

    def resized(x: Tensor, factor: float) -> Tensor:
        size = [max(1, round(side * factor)) for side in x.shape[-2:]]
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    return resized(first, 4), resized(second, 2), last, resized(last, 0.5)


def pyramid_channels(channels: Sequence[int]) -> tuple[int, ...]:
    """The channels of :func:`pyramid`'s maps."""
    return tuple(channels) if len(channels) == len(_STRIDES) else (*channels, channels[-1])


def _refining(modules: Any, levels: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """A hook behind a layer of deformable attention: refines its pixels map by map, and `levels` in place."""

    def refine(layer: nn.Module, args: Any, kwargs: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pixels, *rest = output
        parts = pixels.split([height * width for height, width in kwargs["spatial_shapes_list"]], dim=1)
        refined = [
            module(*pair) for module, pair in zip(modules, zip(parts, levels, strict=True), strict=True)
        ]
        levels[:] = [queries for _, queries in refined]
        return torch.cat([part for part, _ in refined], dim=1), *rest

    return refine


class EncoderHead(nn.Module):
    """The encoder's own prediction: a linear map of each of its maps to the classes, added up at the finest size.

    Args:
        channels: of the encoder's maps, finest first.
        num_classes: K.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Conv2d(width, num_classes, 1) for width in channels])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps -> logits (N, K, h, w)."""
        first, *others = [one(feature) for one, feature in zip(self.maps, features, strict=True)]
        size = first.shape[-2:]
        resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in others]
        return torch.stack([first, *resized]).sum(0)


class ClassHead(nn.Linear):
    """Query -> logits of the K classes and of "no object"."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes + 1)
