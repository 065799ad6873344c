"""SAM and its descendants as Hugging Face's transformers has them, clicked as their authors evaluate them.

The first click asks for three masks and takes the one of the best predicted IoU, as one click can mean a part or the
whole; every later click asks for one mask. Each click is given all clicks so far and, as mask input, the
low-resolution logits of the click before (Kirillov et al., ICCV 2023, appendix A), unless `mask_feedback` is off: then
clicks are all it gets. SAM-HQ's answer is the sum of SAM's
and its own logits, as its authors measure it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from skipclick import Click


@dataclass(frozen=True)
class SamFamily:
    """What differs between them."""

    model: str
    """Class in transformers."""
    processor: str
    image_processor: str
    model_types: frozenset[str]
    """What the configuration of its weights calls itself."""
    logit_limit: float = math.inf
    """Logits are clamped to plus and minus this before they are fed back."""


FAMILIES = {
    "sam": SamFamily("SamModel", "SamProcessor", "SamImageProcessor", frozenset({"sam"})),
    # weights of the next three are published for videos too; the limit is that of their authors' image predictor
    "sam2": SamFamily("Sam2Model", "Sam2Processor", "Sam2ImageProcessor", frozenset({"sam2", "sam2_video"}), 32.0),
    "sam3": SamFamily(
        *("Sam3TrackerModel", "Sam3TrackerProcessor", "Sam3ImageProcessor"),
        frozenset({"sam3_tracker", "sam3_tracker_video", "sam3_video"}),
        32.0,
    ),
    "edgetam": SamFamily(
        "EdgeTamModel", "Sam2Processor", "Sam2ImageProcessor", frozenset({"edgetam", "edgetam_video"}), 32.0
    ),
    "sam-hq": SamFamily("SamHQModel", "SamHQProcessor", "SamImageProcessor", frozenset({"sam_hq"})),
}


@dataclass(frozen=True, eq=False)
class SamFeatures:
    """A photo as its model has seen it, and the logits that its objects are waiting with for their next click."""

    embeddings: dict[str, Any]
    """Of the photo, named as the model's arguments."""
    image_size: tuple[int, int]
    """(H, W) of the photo."""
    input_size: tuple[int, int]
    """(H, W) that the photo has within the model's input, without padding."""
    sizes: dict[str, Any]
    """The same two as the processor wants them back."""
    logits: dict[tuple[Click, ...], Tensor] = field(default_factory=dict)
    """By an object's clicks so far: float32 (1, 1, h, w). A memo: what is missing is computed again."""


class SegmentAnything:
    """One set of weights of a family. An answer depends on the photo and the clicks alone."""

    def __init__(
        self, family: str, model: Any, processor: Any, name: str, device: str = "cpu", *, mask_feedback: bool = True
    ) -> None:
        """
        Args:
            family: a key of `FAMILIES`, whose classes in transformers `model` and `processor` are of.
            name: of the weights.
            mask_feedback: whether a click is also given the low-resolution logits of the click before.
        """
        self._family = FAMILIES[family]
        self.device = torch.device(device)
        self.side: int = model.config.prompt_encoder_config.image_size
        """Of the square that the network looks at, in pixels."""
        self._model = model.eval().requires_grad_(False).to(self.device)
        self._processor = processor
        self._name = name
        self._mask_feedback = mask_feedback

    @staticmethod
    def load(family: str, weights: str, device: str = "cpu", *, mask_feedback: bool = True) -> SegmentAnything:
        """
        Args:
            family: a key of `FAMILIES`.
            weights: a folder that transformers saved, or a name on the Hugging Face hub.
            mask_feedback: as of `__init__`.

        Raises:
            ValueError: the weights cannot be loaded, or are not the family's.
        """
        kind = FAMILIES[family]
        if weights.startswith(("/", ".", "~")) and not Path(weights).is_dir():  # no name on the hub begins so
            raise ValueError(f"{family}:{weights} cannot be loaded from {weights!r}: there is no such folder")
        config = _load(transformers.AutoConfig, weights)
        if config.model_type not in kind.model_types:
            raise ValueError(f"{weights} holds a {config.model_type} model, not one of the family {family!r}")
        processor = _load(getattr(transformers, kind.processor), weights)
        model, report = _load(getattr(transformers, kind.model), weights, dtype=torch.float32, output_loading_info=True)
        if report["missing_keys"]:  # transformers would make them up at random
            missing = sorted(report["missing_keys"])
            raise ValueError(f"{weights} lacks {len(missing)} of the weights of {family}, such as {missing[0]!r}")
        revision = getattr(config, "_commit_hash", None)
        name = f"{family}:{weights}" + (f"@{revision}" if revision else "")
        return SegmentAnything(family, model, processor, name, device, mask_feedback=mask_feedback)

    @property
    def version(self) -> str:
        """Family and weights, with the hub's revision where they came from there, and the library."""
        clicks = "" if self._mask_feedback else ", clicks alone"
        return f"{self._name}{clicks}, transformers {transformers.__version__}"

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> SamFeatures:
        """The image embedding; uint8 RGB (H, W, 3)."""
        inputs = self._processor(images=image, input_data_format="channels_last", return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.device)
        embeddings = self._model.get_image_embeddings(pixels)
        by_name = {"image_embeddings": embeddings}
        if isinstance(embeddings, tuple):  # SAM-HQ refines with what its early blocks saw
            by_name = {"image_embeddings": embeddings[0], "intermediate_embeddings": embeddings[1]}
        sizes = {name: inputs[name].tolist() for name in ("original_sizes", "reshaped_input_sizes") if name in inputs}
        height, width = sizes.get("reshaped_input_sizes", [pixels.shape[-2:]])[0]  # later ones fill the input
        return SamFeatures(by_name, (image.shape[0], image.shape[1]), (height, width), sizes)

    @torch.inference_mode()
    def click(
        self, features: SamFeatures, clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """The mask after all clicks, float32 (H, W), 0 or 1: SAM cuts its logits at 0 at the photo's size.

        `previous` is not looked at: SAM is fed the logits it was made of, which `features` remembers.
        """
        logits = self._logits(features, tuple(clicks))
        (masks,) = self._processor.post_process_masks([logits], **features.sizes)
        mask: NDArray[np.float32] = masks[0, 0].float().cpu().numpy()
        return mask

    @property
    def decoder(self) -> Sequence[nn.Module]:
        """What learns during use (`adaptation`)."""
        return (self._model.mask_decoder,)

    def trainable_logits(
        self, features: SamFeatures, clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> tuple[Tensor, tuple[float, float]]:
        """Of the mask that a click is answered with, with gradients; and the part of them that the photo takes."""
        with torch.inference_mode():
            before = self._previous(features, tuple(clicks))
        embeddings = {name: _with_gradients(value) for name, value in features.embeddings.items()}
        logits = self._forward(embeddings, features, tuple(clicks), _with_gradients(before))
        return logits, (features.input_size[0] / self.side, features.input_size[1] / self.side)

    def _logits(self, features: SamFeatures, clicks: tuple[Click, ...]) -> Tensor:
        """Low-resolution logits, float32 (1, 1, h, w), of the click after those before it."""
        previous = self._previous(features, clicks)
        logits = self._forward(features.embeddings, features, clicks, previous)
        features.logits.pop(clicks[:-1], None)  # an object keeps one map, that of its last click
        features.logits[clicks] = logits
        return logits

    def _previous(self, features: SamFeatures, clicks: tuple[Click, ...]) -> Tensor | None:
        """The logits of the click before, float32 (1, 1, h, w); None before the first, or if none are fed back."""
        if not self._mask_feedback:
            return None
        earlier = clicks[:-1]
        if earlier and earlier not in features.logits:
            self._logits(features, earlier)
        return features.logits.get(earlier)

    def _forward(
        self,
        embeddings: dict[str, Any],
        features: SamFeatures,
        clicks: tuple[Click, ...],
        previous: Tensor | None,
    ) -> Tensor:
        """Logits (1, 1, h, w) of all clicks and the logits before."""
        limit = self._family.logit_limit
        outputs = self._model(
            **embeddings,
            **click_inputs(clicks, features.image_size, features.input_size, self.device),
            input_masks=None if previous is None else previous.clamp(-limit, limit),
            multimask_output=len(clicks) == 1,
        )
        best = int(outputs.iou_scores[0, 0].argmax())
        logits: Tensor = outputs.pred_masks[:, 0, best : best + 1]  # of (1, 1, 3 or 1, h, w)
        return logits


def _with_gradients(value: Any) -> Any:
    """Tensors of inference mode, also within lists, as gradients can pass them."""
    if isinstance(value, (list, tuple)):
        return [_with_gradients(one) for one in value]
    return value if value is None else value.clone()


def click_inputs(
    clicks: Sequence[Click], image_size: tuple[int, int], input_size: tuple[int, int], device: torch.device
) -> dict[str, Tensor]:
    """The clicks of one object as the models take them.

    Returns `input_points`, float32 (1, 1, N, 2) as (x, y) in pixels of the model's input, and `input_labels`, int64
    (1, 1, N), 1 for the object and 0 for the background. Sizes are (H, W); the models add half a pixel themselves.
    """
    scale_x, scale_y = input_size[1] / image_size[1], input_size[0] / image_size[0]
    points = [[click.x * scale_x, click.y * scale_y] for click in clicks]
    labels = [int(click.positive) for click in clicks]
    return {
        "input_points": torch.tensor([[points]], dtype=torch.float32, device=device),
        "input_labels": torch.tensor([[labels]], dtype=torch.int64, device=device),
    }


def _load(kind: Any, weights: str, **options: Any) -> Any:
    """`from_pretrained`, whose own messages run over several lines."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return kind.from_pretrained(weights, **options)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"{kind.__name__} cannot be loaded from {weights!r}, a folder or a name on the hub: {reason}"
        ) from error
