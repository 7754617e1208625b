"""CLIP by transformers: from a folder or the hub, or a small random one for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TINY_VOCABULARY = 512


def load_clip(name: str) -> Any:
    """`"clip:PATH-OR-HUB-NAME"` or `"clip-tiny"` -> transformers' `CLIPModel`.

    The whole of it is loaded and its halves are taken from it: the classes for one half alone take the size of the
    projection from another key of the configuration, and where that differs start it anew with a note in the log.

    Raises:
        ValueError: it is another kind of model, such as EVA02-CLIP.
        OSError: transformers finds no model there.
    """
    from transformers import CLIPModel  # noqa: PLC0415 (seconds)

    if name == "clip-tiny":
        return CLIPModel(_tiny_config())
    where = name.removeprefix("clip:")
    # Of a folder without a model what follows says what is missing.
    if not Path(where).is_dir() or (Path(where) / "config.json").exists():
        _check_kind(where)
    return CLIPModel.from_pretrained(where, **local(where))


def local(where: str) -> dict[str, Any]:
    """What keeps transformers from asking the network about a model that is a folder."""
    return {"local_files_only": True} if Path(where).is_dir() else {}


def _check_kind(where: str) -> None:
    """Raise ValueError where the model is no CLIP: `CLIPModel` would start it at random, with a warning alone."""
    from transformers import AutoConfig, __version__  # noqa: PLC0415

    remedy = (
        f"clip: takes what transformers' CLIPModel reads, and transformers {__version__} has no EVA02-CLIP. "
        "clip:openai/clip-vit-large-patch14 has its size and patches, clip:openai/clip-vit-base-patch16 is ViT-B/16"
    )
    try:
        kind = AutoConfig.from_pretrained(where, **local(where)).model_type
    except ValueError as error:
        raise ValueError(f"{where} is of a kind that transformers does not know: {remedy}") from error
    if kind != "clip":
        raise ValueError(f"{where} is a {kind}: {remedy}")


def _tiny_config() -> Any:
    from transformers import CLIPConfig  # noqa: PLC0415

    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    return CLIPConfig(
        vision_config=size | {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        text_config=size
        | {
            "num_hidden_layers": 2,
            "vocab_size": TINY_VOCABULARY,
            "bos_token_id": 1,
            "pad_token_id": 0,
            "eos_token_id": TINY_VOCABULARY - 1,
        },
        projection_dim=24,
    )
