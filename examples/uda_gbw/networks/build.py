"""The network of a configuration."""

from __future__ import annotations

from examples.uda_gbw.config import Config
from examples.uda_gbw.networks.decoders import ContextDecoder, PyramidDecoder
from examples.uda_gbw.networks.encoders import build_encoder
from examples.uda_gbw.networks.fusion import TwoResolutions
from examples.uda_gbw.networks.segmenter import Segmenter


def build_segmenter(config: Config, num_classes: int) -> Segmenter:
    """A new network, from torch's random numbers where it is not pretrained."""
    model = config.model
    encoder = build_encoder(model.encoder)
    kind = ContextDecoder if model.decoder == "context" else PyramidDecoder
    decoder = kind(encoder.channels, model.channels, num_classes, model.dropout)
    if not config.hrda.enabled:
        return Segmenter(encoder, decoder)
    attention = PyramidDecoder(encoder.channels, model.channels, num_classes, 0.0)
    return TwoResolutions(encoder, decoder, attention)
