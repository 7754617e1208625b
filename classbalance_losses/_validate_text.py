"""Checks for the losses between text embeddings, queries and pixel features; same manners as ``_validate``."""

from __future__ import annotations

from torch import Tensor

from classbalance_losses._validate import check_device
from classbalance_losses._validate_features import check_floats, check_mask

_EMBEDDINGS = "one row for each class. A single embedding: add the axis, unsqueeze(0)."


def check_queries(queries: Tensor) -> None:
    """Check queries (K, L, D) or (N, K, L, D)."""
    check_floats("queries", queries)
    if queries.ndim not in (3, 4):
        remedy = " For L = 1 add the axis: queries.unsqueeze(1)." if queries.ndim == 2 else ""
        raise ValueError(
            "Expected queries of shape (K, L, D), L queries of width D for each of K classes, or (N, K, L, D) "
            f"for N images, got {tuple(queries.shape)}.{remedy}"
        )


def check_embeddings(name: str, value: Tensor, minimum: int = 1) -> None:
    """Check an embedding (K, D) of each class."""
    check_floats(name, value)
    if value.ndim != 2:
        raise ValueError(f"Expected {name} of shape (K, D), got {tuple(value.shape)}: {_EMBEDDINGS}")
    if value.shape[0] < minimum:
        raise ValueError(f"Expected {name} for at least {minimum} classes, got {tuple(value.shape)}.")


def check_same_classes(text: Tensor, prototypes: Tensor) -> None:
    """Check that text (K, D) and prototypes (K, D') are of the same classes; the widths may differ."""
    check_embeddings("text", text)
    check_embeddings("prototypes", prototypes)
    check_device("prototypes", prototypes, "text", text)
    if text.shape[0] != prototypes.shape[0]:
        raise ValueError(
            f"Expected a prototype for each of the {text.shape[0]} rows of text {tuple(text.shape)}, "
            f"got prototypes of shape {tuple(prototypes.shape)}. Encode both from the same list of class names."
        )


def check_projected(projected: Tensor, prototypes: Tensor) -> None:
    """Check that projected text is of the prototypes' shape (K, D)."""
    check_embeddings("projected", projected)
    check_embeddings("prototypes", prototypes)
    check_device("prototypes", prototypes, "projected", projected)
    if projected.shape != prototypes.shape:
        raise ValueError(
            f"Expected projected of the prototypes' shape {tuple(prototypes.shape)}, got {tuple(projected.shape)}. "
            "Φ maps the text embeddings to the prototypes' width: "
            f"torch.nn.Linear({projected.shape[1]}, {prototypes.shape[1]})."
        )


def check_region(mask: Tensor | None, features: Tensor, name: str = "features") -> None:
    """Check the optional region M, a mask (N, *) of the features (N, D, *)."""
    if mask is None:
        return
    check_mask("mask", mask, (features.shape[0], *features.shape[2:]))
    check_device("mask", mask, name, features)


def check_pair_of_maps(masked: Tensor, reference: Tensor, mask: Tensor | None) -> None:
    """Check two feature maps (N, D, *) of one shape, and the region that they are compared in."""
    check_floats("masked", masked)
    check_floats("reference", reference)
    if masked.ndim < 2:
        raise ValueError(f"Expected masked of shape (N, D, *), got {tuple(masked.shape)}.")
    if masked.shape != reference.shape:
        raise ValueError(
            f"Expected masked and reference of one shape, got {tuple(masked.shape)} and {tuple(reference.shape)}. "
            "Both are features of the same images by the same kind of encoder, one of which saw them masked."
        )
    check_device("reference", reference, "masked", masked)
    check_region(mask, masked, "masked")


def check_text_width(features: Tensor, text: Tensor) -> None:
    """Check that features (N, D, *) can be compared with text (K, D)."""
    check_embeddings("text", text, minimum=2)
    check_device("text", text, "features", features)
    if features.shape[1] != text.shape[1]:
        raise ValueError(
            f"Expected features and text of one width, got features of shape {tuple(features.shape)} and text of "
            f"shape {tuple(text.shape)}. Project the features first, with a 1×1 convolution from "
            f"{features.shape[1]} to {text.shape[1]} channels."
        )
