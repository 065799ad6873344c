"""The model's configuration: frozen values that travel inside a checkpoint.

`ModelConfig()` is SkipClick as released (ViT-B/14 with registers). `preset(name)` gives the four rows of the
paper's Table 1, `DINOV2`/`DINOV3_VITB16` the backbones, `TINY` the small network that ships with the project.
Variants are `dataclasses.replace(...)` of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """A plain vision transformer of timm, all of whose taps lie on one grid of patches."""

    name: str = "vit_base_patch14_reg4_dinov2"  # timm's name; sizes below override what the name implies
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    taps: tuple[int, ...] = (2, 5, 8, 11)  # 0-based blocks: the 3rd, 6th, 9th, 12th (Eq. 6)
    final_norm: bool = False  # taps pass the final LayerNorm (the released DINOv3 variant) or not (DINOv2)


@dataclass(frozen=True, kw_only=True)
class ConvNetConfig:
    """A ConvNet of timm whose last four stages, at strides 4, 8, 16 and 32, are the taps.

    `name` alone decides padding and the epsilon of batch norm: published weights need theirs (`tf_efficientnet_lite0`
    has TensorFlow's). The normalisation that they need is the model's `image_mean` and `image_std`.
    """

    name: str = "resnet18d"  # timm's name
    depths: tuple[int, ...] | None = (1, 2, 3, 2)  # blocks of a ResNet's stages; None: as the name says
    widths: tuple[int, ...] = (48, 96, 192, 256)  # channels of the stages
    stem_width: int | None = 24  # channels of a ResNet's stem; None: as the name says
    taps: tuple[int, ...] = (0, 1, 2, 3)  # 0-based stages

    def __post_init__(self) -> None:
        if len(self.widths) != 4:
            raise ValueError(f"widths {self.widths} must be four, one for each of the strides 4, 8, 16 and 32")
        if (self.depths is None) != (self.stem_width is None):
            raise ValueError("depths and stem_width change a ResNet together: give both, or None for both")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that fixes the network's shape and function. `ValueError` on combinations that cannot be built."""

    backbone: VitConfig | ConvNetConfig = field(default_factory=VitConfig)
    train_backbone: bool = False  # Table 1: only the baseline trains it
    patch_size: int = 14  # pixels per token of the prompt embedding and the mixer (and of a ViT backbone)
    resolution: tuple[int, int] = (448, 448)  # (H, W) of the network's input unless told otherwise
    fuse: bool = True  # linear layer over the concatenated taps (Eq. 7); the released baselines have none
    skip_connections: bool = True  # taps enter the pyramid too (Eq. 8)
    mixer_width: int = 768
    mixer_depth: int = 4  # Table 6 lists 2 to 6
    mixer_heads: int = 12
    mixer_grid: int = 32  # side of the learned position grid; other sizes are interpolated
    pyramid: Literal["parallel", "top_down"] = "parallel"
    pyramid_channels: tuple[int, int, int, int] = (128, 256, 512, 1024)  # fine to coarse
    decoder_channels: int = 256
    click_radius: float = 5.0  # pixels at network resolution, whatever the resolution is
    antialias: bool = False  # shrink photos with an antialiasing filter; released: bilinear, corners aligned
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        convolutional = isinstance(self.backbone, ConvNetConfig)
        if convolutional != (self.pyramid == "top_down"):
            raise ValueError(
                f"pyramid={self.pyramid!r} does not fit a {type(self.backbone).__name__}: a ViT's taps share one grid "
                "and take 'parallel', a ConvNet's have strides of their own and take 'top_down'"
            )
        if not self.fuse and (self.num_taps != 1 or self.tap_widths[0] != self.mixer_width):
            raise ValueError("fuse=False needs a single tap as wide as mixer_width; set fuse=True or taps=(index,)")
        if self.skip_connections and self.num_taps != 4:
            raise ValueError(f"skip connections need four taps, one for each pyramid level; got {self.num_taps}")
        if self.mixer_width % self.mixer_heads:
            raise ValueError(f"mixer_width {self.mixer_width} is not a multiple of mixer_heads {self.mixer_heads}")
        taps = self.backbone.taps
        unit, depth = ("stages", 4) if isinstance(self.backbone, ConvNetConfig) else ("blocks", self.backbone.depth)
        if not taps or sorted(set(taps)) != list(taps) or taps[0] < 0:
            raise ValueError(f"taps {taps} must be indices of {unit} from 0 that increase")
        if taps[-1] >= depth:
            raise ValueError(f"taps {taps} lie beyond the backbone's {depth} {unit}")

    @property
    def tap_widths(self) -> tuple[int, ...]:
        """Channels of each tap."""
        if isinstance(self.backbone, ConvNetConfig):
            return tuple(self.backbone.widths[tap] for tap in self.backbone.taps)
        return (self.backbone.embed_dim,) * len(self.backbone.taps)

    @property
    def tap_strides(self) -> tuple[int, ...]:
        """Stride of each tap in pixels of the network's input."""
        if isinstance(self.backbone, ConvNetConfig):
            return tuple(4 << tap for tap in self.backbone.taps)
        return (self.patch_size,) * len(self.backbone.taps)

    @property
    def num_taps(self) -> int:
        return len(self.tap_widths)

    @property
    def size_multiple(self) -> int:
        """Height and width of the network's input must be multiples of this many pixels."""
        return max(32, self.patch_size) if isinstance(self.backbone, ConvNetConfig) else self.patch_size

    def checked_resolution(self, wanted: tuple[int, int] | None = None) -> tuple[int, int]:
        """`wanted` (H, W), or the model's own for None. Raises `ValueError` if the network cannot work at it."""
        resolution, multiple = wanted or self.resolution, self.size_multiple
        if any(side < multiple or side % multiple for side in resolution):
            raise ValueError(
                f"resolution {resolution} does not fit this model: both sides must be multiples of {multiple}"
            )
        return resolution

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_dict` reads it back."""
        values = asdict(self)
        values["backbone"]["kind"] = "convnet" if isinstance(self.backbone, ConvNetConfig) else "vit"
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Rebuild a configuration; `ValueError` names fields that are missing or unknown."""
        values = dict(values)
        backbone = dict(values.pop("backbone", {}))
        kind = backbone.pop("kind", None)
        if kind not in ("vit", "convnet"):
            raise ValueError(f"backbone kind {kind!r} is unknown; expected 'vit' or 'convnet'")
        backbone_class: type[VitConfig | ConvNetConfig] = ConvNetConfig if kind == "convnet" else VitConfig
        values["backbone"] = backbone_class(**_checked(backbone_class, backbone))
        return cls(**_checked(cls, values))


def _checked(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values if they are exactly the fields of `cls`, with JSON's lists as tuples again."""
    names = {f.name for f in fields(cls)}
    if names != set(values):
        missing, unknown = sorted(names - set(values)), sorted(set(values) - names)
        raise ValueError(f"{cls.__name__}: missing fields {missing}, unknown fields {unknown}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _quarter_taps(depth: int) -> tuple[int, ...]:
    """The last block of each quarter of a ViT: 2, 5, 8, 11 of 12 (Eq. 6)."""
    return tuple(depth // 4 * quarter - 1 for quarter in (1, 2, 3, 4))


Preset = Literal["baseline", "frozen", "intermediate", "skip"]
PRESETS: tuple[Preset, ...] = ("baseline", "frozen", "intermediate", "skip")


def preset(
    name: Preset, base: ModelConfig | None = None, tap: Literal["released", "paper"] = "released"
) -> ModelConfig:
    """One of the four configurations of Table 1, on the backbone and sizes of `base` (default: ViT-B/14).

    The paper's two baselines use the last block's features through a linear layer (Eq. 1). The released code takes
    the *third* block and has no linear layer; that is what published weights need and what `tap="released"` builds.
    The stages of a ConvNet stand for the quarters of a ViT; its linear layer stays, since widths differ.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    base = base or ModelConfig()
    convolutional = isinstance(base.backbone, ConvNetConfig)
    quarters = (0, 1, 2, 3) if isinstance(base.backbone, ConvNetConfig) else _quarter_taps(base.backbone.depth)
    single = quarters[:1] if tap == "released" else quarters[-1:]
    taps = single if name in ("baseline", "frozen") else quarters
    return replace(
        base,
        backbone=replace(base.backbone, taps=taps),
        train_backbone=name == "baseline",
        fuse=len(taps) > 1 or tap == "paper" or convolutional,
        skip_connections=name == "skip",
    )


def _dinov2(size: str, embed_dim: int, depth: int, num_heads: int, registers: bool) -> ModelConfig:
    return ModelConfig(
        backbone=VitConfig(
            name=f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2",
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            taps=_quarter_taps(depth),
        ),
        mixer_width=embed_dim,
        mixer_heads=num_heads,
        # The released neck for ViT-B is embed_dim * (1/6, 1/3, 2/3, 4/3); the other sizes keep the ratio.
        pyramid_channels=(embed_dim // 6, embed_dim // 3, embed_dim * 2 // 3, embed_dim * 4 // 3),
    )


# Keys are the hub's names, as the authors' configurations spell them.
DINOV2: dict[str, ModelConfig] = {
    f"dinov2_vit{letter}14{'_reg' if registers else ''}": _dinov2(size, dim, depth, heads, registers)
    for letter, size, dim, depth, heads in [
        ("s", "small", 384, 12, 6),
        ("b", "base", 768, 12, 12),
        ("l", "large", 1024, 24, 16),
    ]
    for registers in (False, True)
}
DINOV3_VITB16 = ModelConfig(
    backbone=VitConfig(name="vit_base_patch16_dinov3_qkvb", final_norm=True),
    patch_size=16,
    mixer_grid=28,
)
TINY = ModelConfig(
    backbone=ConvNetConfig(),
    train_backbone=True,
    patch_size=16,
    resolution=(320, 320),
    mixer_width=192,
    mixer_depth=2,
    mixer_heads=6,
    mixer_grid=20,
    pyramid="top_down",
    pyramid_channels=(48, 64, 128, 128),
    decoder_channels=48,
    antialias=True,
)


def _efficientnet_lite(variant: int, widths: tuple[int, int, int, int]) -> ModelConfig:
    """A frozen EfficientNet-Lite in place of `TINY`'s backbone; the head keeps its sizes."""
    return replace(
        TINY,
        backbone=ConvNetConfig(name=f"tf_efficientnet_lite{variant}", depths=None, widths=widths, stem_width=None),
        train_backbone=False,
        resolution=(448, 448),
        image_mean=(127 / 255,) * 3,
        image_std=(128 / 255,) * 3,
    )


EFFICIENTNET_LITE: dict[str, ModelConfig] = {
    "efficientnet_lite0": _efficientnet_lite(0, (24, 40, 112, 320)),
    "efficientnet_lite1": _efficientnet_lite(1, (24, 40, 112, 320)),
    "efficientnet_lite2": _efficientnet_lite(2, (24, 48, 120, 352)),
}
