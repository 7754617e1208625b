"""Typed configurations from TOML files, checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from examples.common.config import at_least, decisive, in_unit, load
from examples.common.recipe import TrainingConfig as RecipeConfig

CONFIGS = Path(__file__).parent / "configs"
_PLACES = {"data": ("folder", "splits")}


@dataclass(frozen=True)
class DataConfig:
    """Where images come from. Sizes are (height, width)."""

    kind: Literal["voc", "coco", "ade20k", "cityscapes", "camvid"] = "camvid"
    folder: str = ""
    splits: str = ""  # folder of published splits
    split: str = ""  # its subfolder of labeled.txt and unlabeled.txt; "": the first `budget` of a shuffle
    budget: int = 30  # labelled images
    split_seed: int = 42
    size: tuple[int, int] | None = None  # of the training images; None: the files' own
    test_size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None  # None: whole images
    scale: float = 1.0  # images are resized by a factor from [1/scale, scale] before they are cut
    jitter: float = 0.0  # of the colours of labelled images
    rare_class_sampling: bool = False  # of labelled images, as in DAFormer
    rare_class_temperature: float = 0.01
    batch_size: int = 4  # of the labelled and of the unlabelled stream
    train_split: str = "train_alt"  # of CamVid; VOC has lists, "trainaug", the others folders, "train2017"
    test_splits: tuple[str, ...] = ("val_alt",)

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "budget", "scale")
        in_unit(self, "jitter")


@dataclass(frozen=True)
class ComponentConfig:
    """The parts of the network, which the ablation of the components switches off (Table 3)."""

    # HTQG; one linear map of the text and no relevance; object queries alone
    text_queries: Literal["hierarchical", "plain", "none"] = "hierarchical"
    refinement: bool = True  # PTRM; off: queries and features go to the decoder as they are
    object_queries: bool = True  # learnt queries; off: the text's alone
    joint: bool = True  # DQTD: both kinds in one decoder; off: each by itself, in the same one

    def __post_init__(self) -> None:
        if self.text_queries == "none" and self.refinement:
            raise ValueError("components.refinement needs text queries")
        if self.text_queries == "none" and not self.object_queries:
            raise ValueError("components leave no query: text_queries or object_queries must be there")


@dataclass(frozen=True)
class WeightConfig:
    """The weights of the losses, which the ablation of the losses sets to 0 (Table 4).

    The paper gives none but by its sum L_prompt = L_topo + L_anchor.
    """

    encoder: float = 1.0  # cross-entropy of the encoder's own prediction
    consistency: float = 1.0
    entropy: float = 0.01  # of unlabelled images
    diversity: float = 0.1
    topology: float = 1.0
    anchor: float = 1.0
    align: float = 0.1
    mask: float = 0.1  # λ_mask times the weight of L_vl
    mask_bce: float = 5.0  # L_seg's three, as Mask2Former has them
    mask_dice: float = 5.0
    classes: float = 2.0

    def __post_init__(self) -> None:
        at_least(self, 0, *(name for name in asdict(self)))


@dataclass(frozen=True)
class ModelConfig:
    """The networks."""

    vision: str = "efficientnet-lite0"  # or "clip:PATH-OR-HUB-NAME", "efficientnet-lite0:FILE", "clip-tiny"
    train_vision: bool = True
    dense: Literal["tokens", "values"] = "tokens"  # CLIP's last map; see examples.common.vision.ClipVision
    text: str = "minilm"  # or "clip:PATH-OR-HUB-NAME", "clip-tiny"
    template: str = "a photo of a {}."  # of the fixed text embeddings
    prompt_tokens: int = 8
    presence: Literal["softmax", "sigmoid"] = "softmax"  # how zero-shot similarities become s_k
    object_queries: int = 100  # M
    width: int = 256  # of queries and features; a multiple of 32, which Mask2Former's norms want
    heads: int = 8
    pixel_layers: int = 6  # M: deformable attention layers of the pixel decoder, each with PTRM behind it
    decoder_layers: int = 9  # N: masked attention layers; each gives an auxiliary prediction
    inference: Literal["largest", "sum"] = "largest"  # mask decides a pixel; "sum" is Mask2Former's

    def __post_init__(self) -> None:
        at_least(self, 1, "prompt_tokens", "object_queries", "heads", "pixel_layers")
        at_least(self, 0, "decoder_layers")
        if self.width % 32 or self.width % self.heads:
            raise ValueError(f"model.width must be a multiple of 32 and of model.heads, got {self.width}")
        if "{}" not in self.template:
            raise ValueError(f"model.template must have a place {{}} for the class, got {self.template!r}")


@dataclass(frozen=True)
class LossConfig:
    """What the losses leave open."""

    reduction: Literal["sum", "mean"] = "sum"  # of L_div, L_topo and L_anchor
    pairs: Literal["ordered", "unordered"] = "ordered"
    normalize: bool = True  # Φ's output, in L_anchor
    temperature: float = 0.07  # τ of L_align
    align_text: Literal["fixed", "prompted"] = "fixed"  # t of L_align
    points: int = 12544  # at which masks are compared, drawn anew for each image and step
    no_object: float = 0.1  # weight of "no object" in the class loss

    def __post_init__(self) -> None:
        at_least(self, 1, "points")


@dataclass(frozen=True)
class ConsistencyConfig:
    """Weak to strong, as SemiVL does it on UniMatch: pseudo-labels of the weak view, where they are sure."""

    prediction: Literal["encoder", "final"] = "encoder"  # of which the views have to agree
    threshold: float = 0.95
    views: int = 2  # strong views of each unlabelled image
    strength: float = 0.5  # of their colours
    cutmix: bool = True  # a box of each view comes from the next image of the rank's batch

    def __post_init__(self) -> None:
        at_least(self, 1, "views")


@dataclass(frozen=True)
class TrainingConfig(RecipeConfig):
    """The recipe."""

    # passes through the unlabelled images, which then give `iterations`; 0: `iterations` as it is
    epochs: int = 0
    lr: float = 1e-4
    vision_lr: float = 0.1  # times lr, for the pretrained encoder
    weight_decay: float = 0.05
    schedule: Literal["poly", "one_cycle"] = "poly"
    power: float = 0.9
    warmup: int = 0  # steps of "poly" in which the rates rise
    clip: float = 1.0  # largest norm of the gradient
    window: tuple[int, int] | None = None  # of the sliding window; None: whole images
    stride: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "epochs", "warmup")


@dataclass(frozen=True)
class Config:
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    components: ComponentConfig = field(default_factory=ComponentConfig)
    weights: WeightConfig = field(default_factory=WeightConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    note: str = ""  # what published number it belongs to

    def as_dict(self) -> dict[str, Any]:
        """What decides the outcome, as plain data for JSON and checkpoints: where folders lie does not."""
        return decisive(self, _PLACES)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration by path, or by the name of a file in `examples/hvl/configs`; see `load`."""
    return load(Config, path, CONFIGS, overrides)
