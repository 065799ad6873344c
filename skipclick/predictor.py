"""From a photo and clicks to a probability map: the two calls that everything else is built on.

    features = predictor.encode(image)                                    the expensive step, once per photo
    prediction = predictor.predict([ClickRequest(features, clicks)])[0]   once per click: what the backend serves
    probability = predictor.click(features, clicks, previous)             the same by the released protocol

The two differ in where the previous mask lives. `predict` keeps it at network resolution, as training does; the
released code takes it up to the photo's size and down again. A predictor remembers nothing between calls; features and
states are values that the caller keeps. Only `warm_up` leaves something behind on a GPU: recorded clicks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from skipclick.cuda_graphs import PLACES, ClickGraph, record
from skipclick.features import ImageFeatures
from skipclick.head import head_digest, head_state, put_head
from skipclick.masks import BoxMask, enlarge
from skipclick.model import PreparedFeatures, SkipClick
from skipclick.openvino_runtime import OpenVinoNetwork
from skipclick.prompts import Click, click_points, prompt_maps, scale_clicks

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
RUNTIMES = ("torch", "openvino")
BOX_PROBABILITY = 0.7
"""Of the object at each pixel of a drawn box before the first click: chosen on held-out photos, docs/results/noc.md."""
MAX_IMAGE_BYTES = 35_000_000  # of GPU memory for one image's features; larger ones are kept compact


@dataclass(frozen=True, eq=False)
class ClickRequest:
    """One object's clicks on one photo."""

    features: ImageFeatures
    clicks: Sequence[Click]
    """All clicks of the object, oldest first, in pixels of the photo."""
    previous: Tensor | None = None
    """`Prediction.state` after all clicks but the last, or `Predictor.start_state`; None at the first click."""
    within: NDArray[np.bool_] | None = None
    """The part of the photo, bool (H, W), that the mask keeps to, such as a drawn box; None for all of it."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the annotator gets, and what the next click needs."""

    mask: BoxMask
    score: float
    """Mean probability inside the mask, 0 if it is empty."""
    state: Tensor
    """(H, W) of the network, in its dtype, on its device: the object's probability."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.mask.nbytes + self.state.nbytes


class Network(Protocol):
    """What a predictor runs: a `SkipClick`, or its graphs in another runtime."""

    def encode_with_taps(self, image: Tensor) -> tuple[tuple[Tensor, ...], PreparedFeatures]: ...

    def prepare(self, taps: Sequence[Tensor], *, compact: bool = False) -> PreparedFeatures: ...

    def decode(self, features: PreparedFeatures, prompt: Tensor) -> Tensor: ...


class Predictor:
    """Runs one model at one resolution on one device. Raises `ValueError` for invalid input."""

    def __init__(
        self,
        model: SkipClick,
        resolution: tuple[int, int] | None = None,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        *,
        flip: bool = False,
        keep_taps: bool = False,
        runtime: str = "torch",
        graphs: Sequence[Path] = (),
    ) -> None:
        """
        Args:
            resolution: (H, W) that every photo is resized to, whatever its aspect ratio; default: the model's.
            dtype: "float32" or "bfloat16"; "float16" is experimental, it may overflow.
            flip: also look at the mirrored photo and average the logits, at twice the cost. The published figures
                were measured that way; serving does not need it.
            keep_taps: keep the backbone's taps in the features, for heads other than the model's own.
            runtime: what runs the network, "torch" or, on a CPU, "openvino".
            graphs: folders to search for OpenVINO graphs of this model, see `openvino_runtime.find_graphs`.
        """
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime {runtime!r} is unknown; choose one of {', '.join(RUNTIMES)}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
        self.resolution = model.config.checked_resolution(resolution)
        self.device = torch.device(device)
        if runtime == "openvino" and self.device.type != "cpu":
            raise ValueError(f"OpenVINO runs on the CPU, not on {self.device}; use the runtime 'torch'")
        # OpenVINO's graphs are float32 at both ends, whatever they compute in.
        self.dtype = DTYPES[dtype] if runtime == "torch" else torch.float32
        self.runtime = runtime if runtime == "torch" else f"{runtime} {dtype}"
        self.flip = flip
        self.keep_taps = keep_taps
        self.head = head_digest(head_state(model))
        self._graphs: Mapping[int, ClickGraph] = {}
        # A copy, so that the caller's model keeps its device and type; kernels prefer channels last.
        self.model: SkipClick = copy.deepcopy(model).eval().to(self.device, self.dtype)
        self.model.to(memory_format=torch.channels_last)
        self.model.requires_grad_(False)
        self._network: Network = (
            OpenVinoNetwork(self.model, self.resolution, dtype, graphs) if runtime == "openvino" else self.model
        )

    def with_head(self, state: Mapping[str, Tensor], version: str) -> Predictor:
        """A predictor for another head, `state` as `load_head` returns it, on this one's backbone, which both share.

        Features of either can be used by the other after `prepare`, if they hold the taps (`keep_taps`). Raises
        `ValueError` if the head does not fit.
        """
        other = copy.copy(self)
        other._graphs = {}
        other.model = copy.deepcopy(self.model, {id(self.model.backbone): self.model.backbone})
        other.model.version = version
        put_head(other.model, state)
        other.head = head_digest(state)
        other._network = (
            self._network.with_head(other.model) if isinstance(self._network, OpenVinoNetwork) else other.model
        )
        return other

    def without_graphs(self) -> Predictor:
        """The same predictor without what `warm_up` recorded: it may run in another thread at the same time."""
        other = copy.copy(self)
        other._graphs = {}
        return other

    @property
    def version(self) -> str:
        """Name of the weights in use."""
        return self.model.version

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> ImageFeatures:
        """The features of a photo: all that depends on it alone.

        image: uint8 RGB (H, W, 3), turned as the annotator sees it.
        """
        _check_image(image)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self.device).permute(2, 0, 1)[None]  # (1, 3, H, W)
        if self.model.config.antialias:
            resized = self._resize(pixels, self.resolution).float()  # resizing uint8 is many times faster
        else:
            resized = self._resize(pixels.float(), self.resolution)
        network_input = self._with_mirrored(resized / 255).to(self.dtype, memory_format=torch.channels_last)
        features = self._features(*self._network.encode_with_taps(network_input), (image.shape[0], image.shape[1]))
        return features if self.keep_taps else replace(features, taps=())

    @torch.inference_mode()
    def prepare(self, features: ImageFeatures) -> ImageFeatures:
        """A photo's features for this predictor's head, from their taps; features of this head are returned unchanged.

        Raises `ValueError` if they belong to another head and hold no taps.
        """
        if features.head == self.head:
            return features
        if not features.taps:
            raise ValueError("these features belong to another head and hold no taps; encode with keep_taps=True")
        return self._features(features.taps, self._network.prepare(features.taps), features.image_size)

    @torch.inference_mode()
    def click(
        self, features: ImageFeatures, clicks: Sequence[Click], previous: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """The object's probability after its clicks so far.

        Args:
            features: from `encode` of a predictor with the same model and resolution.
            clicks: all clicks of the object, oldest first, in pixels of the photo.
            previous: float32 (H, W) in [0, 1], the answer to all clicks but the last; None at the first.

        Returns:
            float32 (H, W) in [0, 1] at the photo's size; the mask is where it exceeds 0.5.
        """
        return self.click_batch([features], [clicks], [previous])[0]

    @torch.inference_mode()
    def click_batch(
        self,
        features: Sequence[ImageFeatures],
        clicks: Sequence[Sequence[Click]],
        previous: Sequence[NDArray[np.float32] | None],
    ) -> list[NDArray[np.float32]]:
        """`click` for several objects, of one photo or of several, in one batch; the same up to rounding."""
        sizes = [photo.image_size for photo in features]
        for object_clicks, size in zip(clicks, sizes, strict=True):
            check_clicks(object_clicks, size)
        maps = torch.cat([self._previous(last, size) for last, size in zip(previous, sizes, strict=True)])
        prepared = PreparedFeatures.cat([photo.prepared for photo in features])
        logits = self._network.decode(prepared, self._prompt(clicks, maps, sizes)).float()  # (B or 2 B, 1, h, w)
        if self.flip:
            logits = 0.5 * (logits[::2] + logits[1::2].flip(-1))
        probabilities = logits.sigmoid().unsqueeze(1)  # (B, 1, 1, h, w)
        return [self._resize(one, size)[0, 0].cpu().numpy() for one, size in zip(probabilities, sizes, strict=True)]

    @torch.inference_mode()
    def predict(self, requests: Sequence[ClickRequest]) -> list[Prediction]:
        """Masks after the objects' clicks so far, in one batch; the objects may be on different photos.

        Raises `ValueError` if there is no request, a click lies outside its photo, or a state is not this predictor's.
        """
        probabilities = self.probabilities(requests)
        # All work is queued on the device before the first result is waited for.
        enlarged = [
            enlarge(probability, request.features.image_size, antialias=self.model.config.antialias)
            for probability, request in zip(probabilities, requests, strict=True)
        ]
        states = probabilities.to(self.dtype)
        masks = [keep_within(request.within, *part.fetch()) for part, request in zip(enlarged, requests, strict=True)]
        return [Prediction(*mask, state.clone()) for mask, state in zip(masks, states, strict=True)]

    @torch.inference_mode()
    def probabilities(self, requests: Sequence[ClickRequest]) -> Tensor:
        """The probabilities behind the masks of `predict`: float32 (B, H, W) at the network's resolution, in [0, 1].

        Raises `ValueError` as `predict` does.
        """
        if self.flip:
            raise ValueError("`predict` cannot average mirrored views; use `click`, or flip=False")
        if not requests:
            raise ValueError("there are no requests; give at least one")
        for request in requests:
            check_clicks(request.clicks, request.features.image_size)
            self._check_state(request.previous)
            _check_area(request.within, request.features.image_size)
        probabilities = self._probabilities(requests)
        for probability, request in zip(probabilities, requests, strict=True):
            if request.within is not None:
                probability *= self.start_state(request.within)
        return probabilities

    @torch.inference_mode()
    def start_state(self, area: NDArray[np.bool_], probability_inside: float = 1.0) -> Tensor:
        """A state to start from if an `area` of the object, bool (H, W) of the photo, is known before the first click.

        probability_inside: of the object at each pixel of the area: 1 for a mask, `BOX_PROBABILITY` for a drawn box,
        which holds background, too.
        """
        probability = probability_inside * torch.from_numpy(area.astype(np.float32)).to(self.device)[None, None]
        return self._resize(probability, self.resolution)[0, 0].to(self.dtype)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Do the work now that makes the first calls slow; on a GPU this also records clicks as CUDA graphs.

        Graphs use fixed memory: from then on, only one thread at a time may call `predict`.
        """
        features = self.encode(np.zeros((*self.resolution, 3), np.uint8))
        self.predict([ClickRequest(features, [Click(0, 0)])])
        if self.device.type == "cuda":
            self._graphs = record(self._click_path, features.prepared, self._initial_state()[None, None])

    def _features(self, taps: tuple[Tensor, ...], prepared: PreparedFeatures, size: tuple[int, int]) -> ImageFeatures:
        if self.device.type == "cuda" and ImageFeatures((), prepared, size).nbytes > MAX_IMAGE_BYTES:
            prepared = self._network.prepare(taps, compact=True)
        return ImageFeatures(taps, prepared, size, self.head)

    def _probabilities(self, requests: Sequence[ClickRequest]) -> Tensor:
        """(B, H, W) float32 at network resolution."""
        prepared = [request.features.prepared for request in requests]
        previous = [request.previous for request in requests]
        scaled = [scale_clicks(r.clicks, r.features.image_size, self.resolution) for r in requests]
        graph = next((self._graphs[batch] for batch in sorted(self._graphs) if batch >= len(requests)), None)
        if graph is not None and max(len(clicks) for clicks in scaled) <= PLACES:
            return graph(prepared, previous, torch.stack(click_points(scaled, places=PLACES)))
        initial = self._initial_state()
        stacked = torch.stack([initial if last is None else last for last in previous]).unsqueeze(1)
        return self._click_path(PreparedFeatures.cat(prepared), stacked, *click_points(scaled, self.device))

    def _click_path(self, features: PreparedFeatures, previous: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Probability (B, H, W) float32 from prepared features, previous (B, 1, H, W) and points (B, N, 2)."""
        prompt = prompt_maps(previous, positives, negatives, self.model.config.click_radius)
        return self._network.decode(features, prompt).float().sigmoid().squeeze(1)

    def _initial_state(self) -> Tensor:
        """The state before the first click."""
        return torch.zeros(self.resolution, dtype=self.dtype, device=self.device)

    def _check_state(self, state: Tensor | None) -> None:
        if state is not None and (tuple(state.shape), state.dtype) != (self.resolution, self.dtype):
            raise ValueError(
                f"the previous state is {state.dtype} {tuple(state.shape)}; give `Prediction.state` of this predictor, "
                f"{self.dtype} {self.resolution}"
            )

    def _prompt(self, clicks: Sequence[Sequence[Click]], previous: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Prompt maps (B or 2 B, 3, h, w) at network resolution; an object's mirrored view follows its plain one."""
        views: list[list[Click]] = []
        for object_clicks, size in zip(clicks, sizes, strict=True):
            views.append(scale_clicks(object_clicks, size, self.resolution))
            if self.flip:
                views.append([Click(self.resolution[1] - 1 - c.x, c.y, c.positive) for c in views[-1]])
        positives, negatives = click_points(views, self.device)
        prompt = prompt_maps(self._with_mirrored(previous), positives, negatives, self.model.config.click_radius)
        return prompt.to(self.dtype)

    def _previous(self, previous: NDArray[np.float32] | None, size: tuple[int, int]) -> Tensor:
        if previous is None:
            return torch.zeros(1, 1, *self.resolution, device=self.device)
        if previous.shape != size or previous.dtype != np.float32:
            raise ValueError(
                f"previous is {previous.dtype} {previous.shape}; give what the last click returned, float32 {size}"
            )
        return self._resize(torch.from_numpy(previous).to(self.device)[None, None], self.resolution)

    def _resize(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        if self.model.config.antialias:
            return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=True)
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)

    def _with_mirrored(self, maps: Tensor) -> Tensor:
        return torch.stack([maps, maps.flip(-1)], dim=1).flatten(0, 1) if self.flip else maps


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"the image is {kind}; give a NumPy array of uint8, 0 to 255")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"the image has shape {image.shape}; give RGB as (height, width, 3)")


def keep_within(area: NDArray[np.bool_] | None, mask: BoxMask, score: float) -> tuple[BoxMask, float]:
    """A mask clipped to an area of the photo, bool (H, W), and its score, 0 if nothing of it is left."""
    clipped = mask if area is None else mask.clipped(area)
    return clipped, 0.0 if clipped.empty else score


def _check_area(area: NDArray[np.bool_] | None, size: tuple[int, int]) -> None:
    if area is not None and (area.shape != size or area.dtype != np.bool_):
        raise ValueError(f"the area is {area.dtype} {area.shape}; give bool {size}, a mask of the photo")


def check_clicks(clicks: Sequence[Click], size: tuple[int, int]) -> None:
    """Raises `ValueError` if there is no click, or one outside a photo of `size` (H, W)."""
    if not clicks:
        raise ValueError("there are no clicks; give at least one")
    for click in clicks:
        if not (0 <= click.x <= size[1] and 0 <= click.y <= size[0]):
            raise ValueError(
                f"click ({click.x}, {click.y}) lies outside the image, which is {size[1]} wide and {size[0]} high; "
                "give pixels of the original image, x to the right and y down"
            )
