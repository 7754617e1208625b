"""MONAI's networks, fitted to the patches.

The published V-Net has 32 filters in its first stage, kernels of 3 x 3 x 3, ReLU, and dropout at the deepest and the
finest features; MONAI's has 16, 5 x 5 x 5, ELU here, and dropout in every stage, and adds the input to the first one.
"""

from __future__ import annotations

from typing import Any

from monai.networks.nets import BasicUNet, DynUNet, VNet
from torch import nn

from examples.synapse_ssl.config import ModelConfig
from examples.synapse_ssl.data.config import Size

_STRIDE = 16  # of the coarsest features of VNet and BasicUNet


def build_network(config: ModelConfig, num_classes: int, patch: Size, *, heads: int = 1) -> nn.Module:
    """A network (N, 1, *patch) -> logits (N, C, *patch).

    With several heads it gives (N, heads, C, *patch) in training, the finest first: `dyn_unet` alone, whose other
    heads are nearest-neighbour enlargements of coarser logits. In evaluation mode there is one output in any case.

    Raises:
        ValueError: the patch does not divide by the network's stride, the features are not as many as the network
            has stages, it cannot have so many heads, or it is A&D's (`diffusion_network.py`).
    """
    if config.network == "diff_vnet":
        raise ValueError('model.network = "diff_vnet" is for method = "a_and_d" alone')
    if config.network == "dyn_unet":
        return _dyn_unet(config, num_classes, patch, heads)
    if heads > 1:
        raise ValueError(f'model.network must be "dyn_unet" for {heads} outputs, got "{config.network}"')
    if any(side % _STRIDE for side in patch):
        raise ValueError(
            f'data.patch must divide by {_STRIDE} for model.network = "{config.network}", got {patch}; '
            '"dyn_unet" takes flat patches'
        )
    if config.network == "vnet":
        drop = config.dropout
        network: nn.Module = VNet(
            3, 1, num_classes, dropout_prob_down=drop, dropout_prob_up=(drop, drop), act="elu"
        )
        return network
    if len(config.features) != 6:
        raise ValueError(f"model.features must be six numbers for basic_unet, got {config.features}")
    unet: nn.Module = BasicUNet(3, 1, num_classes, config.features, dropout=config.dropout)
    return unet


def _dyn_unet(config: ModelConfig, num_classes: int, patch: Size, heads: int) -> nn.Module:
    stages = len(config.features)
    if stages < max(3, heads + 1):
        raise ValueError(
            f"model.features must be at least {max(3, heads + 1)} numbers for dyn_unet with {heads} "
            f"output{'s' if heads > 1 else ''}, got {config.features}"
        )
    kernels, strides = stages_of(patch, stages, "dyn_unet")
    options: dict[str, Any] = {"deep_supervision": True, "deep_supr_num": heads - 1} if heads > 1 else {}
    network: nn.Module = DynUNet(
        3,
        1,
        num_classes,
        kernels,
        strides,
        strides[1:],
        filters=config.features,
        dropout=config.dropout or None,
        **options,
    )
    return network


def stages_of(patch: Size, stages: int, network: str) -> tuple[list[Size], list[Size]]:
    """Kernels and strides of each stage: an axis is left alone while another one is more than twice as long.

    So flat patches, as those of hearts with ten slices, keep their few slices until the others are as few.

    Raises:
        ValueError: an axis is odd where it should be halved; `network` is named as the one whose patch it is.
    """
    extent, kernels, strides = list(patch), [], [(1, 1, 1)]
    for stage in range(stages):
        long = [2 * side >= max(extent) for side in extent]
        kernels.append(_size(3 if wide else 1 for wide in long))
        if stage + 1 < stages:
            if any(wide and side % 2 for wide, side in zip(long, extent, strict=True)):
                raise ValueError(
                    f"data.patch must be halved {stages - 1} times by {network} with {stages} features, and {patch} "
                    f"has come to {tuple(extent)}: take another patch or fewer features"
                )
            strides.append(_size(2 if wide else 1 for wide in long))
            extent = [side // step for side, step in zip(extent, strides[-1], strict=True)]
    return kernels, strides


def _size(values: Any) -> Size:
    depth, height, width = values
    return depth, height, width
