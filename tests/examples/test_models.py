"""The encoder-decoders: shapes, the pretrained encoder's features, the choice of encoder."""

from __future__ import annotations

import pytest
import torch

from examples.common import models
from examples.common.models import UNet, build_model

needs_weights = pytest.mark.skipif(
    not models.pretrained_available(),
    reason="EfficientNet-Lite0 is not installed: the extra [examples] has it",
)


@pytest.mark.parametrize("size", [(64, 64), (45, 60), (33, 70)])
@pytest.mark.parametrize("encoder", ["unet", pytest.param("efficientnet-lite0", marks=needs_weights)])
def test_logits_have_the_images_size_and_every_parameter_learns(encoder, size):
    model = build_model(5, encoder)
    logits = model(torch.rand(2, 3, *size))
    assert logits.shape == (2, 5, *size)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("channels", [1, 4])
def test_the_unet_takes_any_number_of_channels(channels):
    model = build_model(2, "auto", in_channels=channels)
    assert isinstance(model, UNet)
    assert model(torch.rand(1, channels, 40, 24)).shape == (1, 2, 40, 24)


@needs_weights
def test_the_encoder_computes_what_its_package_does():
    network = models._load_efficientnet_lite0().eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        features = models.EfficientNetLiteEncoder().eval()(image)
        expected = network._swish(network._bn0(network._conv_stem(image)))
        for block in network._blocks:
            expected = block(expected)
    assert [tuple(f.shape[1:]) for f in features] == [(24, 56, 56), (40, 28, 28), (112, 14, 14), (320, 7, 7)]
    torch.testing.assert_close(features[-1], expected, rtol=1e-4, atol=1e-4)


@needs_weights
def test_auto_takes_the_pretrained_encoder_for_colour_images():
    assert isinstance(build_model(3), models.EfficientNetLiteFPN)


def test_auto_falls_back_to_the_unet_where_the_weights_are_not_installed(monkeypatch):
    monkeypatch.setattr(models, "pretrained_available", lambda: False)
    assert isinstance(build_model(3), UNet)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "classbalance_losses\[examples\]"'):
        build_model(3, "efficientnet-lite0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "at least 1, got 0"),
        ({"num_classes": 3, "encoder": "resnet"}, "one of auto, efficientnet-lite0, unet, got 'resnet'"),
        (
            {"num_classes": 3, "encoder": "efficientnet-lite0", "in_channels": 1},
            "3 channels, got in_channels=1",
        ),
    ],
)
def test_build_model_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(**arguments)
