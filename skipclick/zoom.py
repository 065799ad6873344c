"""Zoom-in: from the second click on, the network looks at a crop of the photo around the object.

A network that sees 320 or 448 pixels of a photo draws a small object coarsely. The first click is answered on the whole
photo, each further one on the view that `next_view` chooses from the answer before and the clicks: a crop around the
object or, once the mask hardly changes any more, a smaller one around the click, outside of which the mask stays.

    photo, encode_crop, state = predictor.encode(image), crop_encoder(predictor, image), None
    for count in range(1, len(clicks) + 1):
        request = zoom_request(photo, clicks[:count], state, encode_crop)
        (answer,) = predict_zoomed(predictor, [request])
        state = answer.state

Everything is a value: features of the photo and of its crops, states, answers. Where crops are encoded and kept is the
caller's business, and no answer depends on it. While the view is the whole photo, answers are those of
`Predictor.predict`, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skipclick.features import ImageFeatures
from skipclick.masks import NOTHING, Box, BoxMask, enlarge, overlap, replace_within, weighted_rows
from skipclick.predictor import BOX_PROBABILITY, ClickRequest, Predictor, check_clicks, keep_within
from skipclick.prompts import Click

FEATHER = 1 / 16
"""Part of a crop's side, along each border within the photo, in which its answer fades into the one before."""


@dataclass(frozen=True, kw_only=True)
class ZoomRule:
    """Which part of the photo the network looks at. docs/results/zoom.md compares the defaults with others."""

    margin: float = 1.4
    """Sides of a new crop in those of the box around mask and clicks."""
    largest: float = 0.9
    """A crop of more than this part of the photo's sides is not worth an encode: the view is the whole photo. Where the
    parts of both sides differ, their geometric mean counts."""
    elongation: float = 0.0
    """Shape of a crop: 0 for the photo's aspect ratio, 1 for that of the box, between them what lies between."""
    smallest: float = 0.25
    """Sides of a crop have at least this part of the network's pixels: closer up there is nothing more to be seen."""
    loosest: float = 1.8
    """A crop is left for a closer one when its sides are more than this many times as long; likewise."""
    local_from: int = 3
    """From this click on, a click on a mask that has settled is answered on a crop around itself, and the mask outside
    that crop stays."""
    settled: float = 0.95
    """A mask has settled when it has at least this IoU with the one before it."""
    local: float = 0.7
    """Sides of a crop around a click, a square, in the geometric mean of those of the box around mask and clicks."""
    largest_local: float = 0.5
    """Where that would be more than this part of the object's view, the click is answered on that view."""


DEFAULT_RULE = ZoomRule()


@dataclass(frozen=True, eq=False)
class ZoomState:
    """What the next click needs of the answer before it."""

    whole: Tensor
    """(H, W) of the network, in its dtype, on its device: the object's probability over the photo, with that of the
    crops so far averaged in."""
    crop: Tensor | None
    """The same over `view`, with that of crops around clicks averaged in; None where that is the whole photo."""
    view: Box
    """The last one that held the whole object."""
    mask: BoxMask
    score: float
    """Mean probability inside the mask, 0 if it is empty."""
    agreement: float = 0.0
    """IoU of the mask with the one before it."""

    @property
    def resolution(self) -> tuple[int, int]:
        """(H, W) of the network."""
        return self.whole.shape[0], self.whole.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.whole.nbytes + (0 if self.crop is None else self.crop.nbytes) + self.mask.nbytes


@dataclass(frozen=True, eq=False)
class ZoomRequest:
    """One object's clicks on one photo, to be answered on one view of it."""

    features: ImageFeatures
    """Of the view; their `image_size` is the view's in pixels of the photo."""
    view: Box
    size: tuple[int, int]
    """(H, W) of the photo in pixels."""
    clicks: Sequence[Click]
    """All clicks of the object, oldest first, in pixels of the photo. Those outside the view are left out."""
    previous: ZoomState | None = None
    """After all clicks but the last; None at the first click."""
    within: NDArray[np.bool_] | None = None
    """The part of the photo, bool (H, W), that the mask keeps to, such as a drawn box; None for all of it."""


@dataclass(frozen=True, eq=False)
class ZoomPrediction:
    """What the annotator gets, and what the next click needs."""

    state: ZoomState

    @property
    def mask(self) -> BoxMask:
        return self.state.mask

    @property
    def score(self) -> float:
        """Mean probability inside the mask, 0 if it is empty."""
        return self.state.score

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.state.nbytes


def start_zoomed(predictor: Predictor, mask: NDArray[np.bool_]) -> ZoomState:
    """The state of an object of which a mask of the photo, bool (H, W), is known before its first click."""
    whole = whole_view((mask.shape[0], mask.shape[1]))
    return ZoomState(predictor.start_state(mask), None, whole, BoxMask.of(mask), 1.0)


def start_in_box(predictor: Predictor, area: NDArray[np.bool_]) -> ZoomState:
    """The state of an object before its first click, around which a box was drawn: `area`, bool (H, W) of the photo.

    Its mask is empty, so that the first answer is on the whole photo.
    """
    size = area.shape[0], area.shape[1]
    state = predictor.start_state(area, BOX_PROBABILITY)
    return ZoomState(state, None, whole_view(size), BoxMask.of(np.zeros(size, np.bool_)), 1.0)


def whole_view(size: tuple[int, int]) -> Box:
    """The view of a whole photo of `size` (H, W)."""
    return 0, 0, size[0], size[1]


def next_view(
    previous: ZoomState | None, clicks: Sequence[Click], size: tuple[int, int], rule: ZoomRule = DEFAULT_RULE
) -> Box:
    """The view for the last of `clicks`: the likely one, or where that click falls outside it, one around all; later
    on a part of it around the click.

    It follows from the clicks and the answer to all but the last, and from nothing else.
    """
    if previous is None or previous.mask.empty:
        return whole_view(size)
    view = likely_view(previous, clicks[:-1], size, rule)
    if not contains(core(view, size), around(clicks[-1:], size)):
        return new_view(around(clicks, size, previous.mask.box), size, previous.resolution, rule)
    side = local_side(previous, clicks[:-1], size, rule)
    return view if side is None else _square_around(clicks[-1], side, size)


def local_side(
    previous: ZoomState, clicks: Sequence[Click], size: tuple[int, int], rule: ZoomRule = DEFAULT_RULE
) -> int | None:
    """How wide and high the crop around the click after `clicks` will be, to which `previous` is the answer; None where
    that click will be answered on the view of the whole object."""
    if len(clicks) + 1 < rule.local_from or previous.agreement < rule.settled or previous.mask.empty:
        return None
    top, left, bottom, right = around(clicks, size, previous.mask.box)
    least = rule.smallest * math.sqrt(math.prod(previous.resolution))
    side = round(max(rule.local * math.sqrt((bottom - top) * (right - left)), least))
    view = likely_view(previous, clicks, size, rule)
    local = min(side, size[0]) * min(side, size[1])
    return side if local <= rule.largest_local * _area(view) else None


def _square_around(click: Click, side: int, size: tuple[int, int]) -> Box:
    """With a click in its middle, as far as the photo's border allows."""
    (top, left, _, _), (height, width) = around([click], size), (min(side, size[0]), min(side, size[1]))
    top, left = min(max(top - height // 2, 0), size[0] - height), min(max(left - width // 2, 0), size[1] - width)
    return top, left, top + height, left + width


def likely_view(
    previous: ZoomState, clicks: Sequence[Click], size: tuple[int, int], rule: ZoomRule = DEFAULT_RULE
) -> Box:
    """The view for the click after `clicks`, to which `previous` is the answer, unless that click falls outside it or
    is answered on a crop around itself.

    The present crop stays while mask and clicks fit into it with room to spare and it is not far too large.
    """
    if previous.mask.empty:
        return whole_view(size)
    box = around(clicks, size, previous.mask.box)
    closer = new_view(box, size, previous.resolution, rule)
    view = previous.view
    is_tight = math.sqrt(_area(view) / _area(closer)) <= rule.loosest
    return view if view != whole_view(size) and is_tight and contains(core(view, size), box) else closer


def new_view(box: Box, size: tuple[int, int], resolution: tuple[int, int], rule: ZoomRule = DEFAULT_RULE) -> Box:
    """A view with `box` in its middle; the whole photo where it would be almost that.

    resolution: (H, W) of the network.
    """
    sides = box[2] - box[0], box[3] - box[1]
    wanted = [
        max(rule.margin * side, rule.smallest * pixels) / length
        for side, pixels, length in zip(sides, resolution, size, strict=True)
    ]
    parts = [min(max(wanted) ** (1 - rule.elongation) * part**rule.elongation, 1.0) for part in wanted]
    if math.sqrt(math.prod(parts)) > rule.largest:
        return whole_view(size)
    top, bottom = _stretch_around(box[0], box[2], size[0], parts[0])
    left, right = _stretch_around(box[1], box[3], size[1], parts[1])
    return top, left, bottom, right


def _stretch_around(start: int, stop: int, length: int, part: float) -> tuple[int, int]:
    """`part` of `length`, as far as the photo's border allows with start:stop in its middle."""
    extent = max(round(part * length), stop - start)
    first = min(max((start + stop - extent) // 2, 0), length - extent)
    return first, first + extent


def around(clicks: Sequence[Click], size: tuple[int, int], box: Box = NOTHING) -> Box:
    """The box around the pixels of clicks and another box."""
    rows = [min(int(click.y), size[0] - 1) for click in clicks]
    columns = [min(int(click.x), size[1] - 1) for click in clicks]
    if box != NOTHING:
        rows += [box[0], box[2] - 1]
        columns += [box[1], box[3] - 1]
    return min(rows), min(columns), max(rows) + 1, max(columns) + 1


def core(view: Box, size: tuple[int, int]) -> Box:
    """The part of a view in which its answer counts fully: all but `FEATHER` along borders within the photo."""
    top, left, bottom, right = view
    down, across = math.ceil(FEATHER * (bottom - top)), math.ceil(FEATHER * (right - left))
    return (
        top and top + down,
        left and left + across,
        bottom if bottom == size[0] else bottom - down,
        right if right == size[1] else right - across,
    )


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def contains(outer: Box, inner: Box) -> bool:
    """Whether no pixel of `inner` lies outside of `outer`."""
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def crop_encoder(predictor: Predictor, image: NDArray[np.uint8]) -> Callable[[Box], ImageFeatures]:
    """A function that encodes views of `image`, uint8 RGB (H, W, 3), and remembers the last one."""

    @lru_cache(maxsize=1)
    def encode(view: Box) -> ImageFeatures:
        top, left, bottom, right = view
        return predictor.encode(image[top:bottom, left:right])

    return encode


def zoom_request(
    photo: ImageFeatures,
    clicks: Sequence[Click],
    previous: ZoomState | None,
    encode_crop: Callable[[Box], ImageFeatures],
    rule: ZoomRule = DEFAULT_RULE,
    within: NDArray[np.bool_] | None = None,
) -> ZoomRequest:
    """The request for the last of `clicks`, with the features of its view: the photo's or those of `encode_crop`."""
    view = next_view(previous, clicks, photo.image_size, rule)
    features = photo if view == whole_view(photo.image_size) else encode_crop(view)
    return ZoomRequest(features, view, photo.image_size, clicks, previous, within)


@torch.inference_mode()
def predict_zoomed(predictor: Predictor, requests: Sequence[ZoomRequest]) -> list[ZoomPrediction]:
    """Masks after the objects' clicks so far: one batch, of any photos and any views of them.

    Raises `ValueError` if there is no request, a click lies outside its photo, none in the view, or what is given does
    not belong together.
    """
    for request in requests:
        _check(request)
    antialias = predictor.model.config.antialias
    before = [_in_view(request, antialias) for request in requests]
    probabilities = predictor.probabilities(
        [
            ClickRequest(request.features, _clicks_in_view(request), known, _area_in_view(request))
            for request, known in zip(requests, before, strict=True)
        ]
    )
    # All work is handed to the device before the first result is waited for.
    work = []
    for request, known, probability in zip(requests, before, probabilities, strict=True):
        seamless = _feathered(request, known, probability)
        enlarged = enlarge(seamless, request.features.image_size, antialias=antialias)
        work.append((request, enlarged, seamless.to(predictor.dtype, copy=True)))
    answers = []
    for request, enlarged, probability in work:
        mask, score = _in_photo(*keep_within(_area_in_view(request), *enlarged.fetch()), request)
        answers.append(ZoomPrediction(_state(request, probability, mask, score, antialias)))
    return answers


def _check(request: ZoomRequest) -> None:
    check_clicks(request.clicks, request.size)
    top, left, bottom, right = view = request.view
    if not contains(whole_view(request.size), view):
        raise ValueError(f"the view {view} is not a part of a photo of {request.size[1]} x {request.size[0]} pixels")
    if request.features.image_size != (bottom - top, right - left):
        raise ValueError(
            f"the features are of {request.features.image_size[1]} x {request.features.image_size[0]} pixels, but the "
            f"view {view} has {right - left} x {bottom - top}; encode that part of the photo"
        )


def _clicks_in_view(request: ZoomRequest) -> list[Click]:
    """In pixels of the view."""
    top, left, bottom, right = request.view
    moved = [Click(click.x - left, click.y - top, click.positive) for click in request.clicks]
    return [click for click in moved if 0 <= click.x <= right - left and 0 <= click.y <= bottom - top]


def _area_in_view(request: ZoomRequest) -> NDArray[np.bool_] | None:
    top, left, bottom, right = request.view
    return None if request.within is None else request.within[top:bottom, left:right]


def _in_view(request: ZoomRequest, antialias: bool) -> Tensor | None:
    """What is known before the click, on the view's network pixels: from the crop if it covers the view, else from the
    whole photo."""
    state, view = request.previous, request.view
    if state is None:
        return None
    if state.crop is not None and contains(state.view, view):
        source, source_view = state.crop, state.view
    else:
        source, source_view = state.whole, whole_view(request.size)
    return source if source_view == view else _resample(source, source_view, view, antialias).to(source.dtype)


def _feathered(request: ZoomRequest, known: Tensor | None, probability: Tensor) -> Tensor:
    """The answer on a view, float32 (h, w), fading into what was known before towards borders within the photo."""
    if request.view == whole_view(request.size):
        return probability
    top, left, bottom, right = request.view
    rows = _ramp(probability.shape[0], top > 0, bottom < request.size[0], probability.device)
    columns = _ramp(probability.shape[1], left > 0, right < request.size[1], probability.device)
    before = torch.zeros_like(probability) if known is None else known.float()
    return torch.lerp(before, probability, torch.minimum(rows[:, None], columns[None, :]))


@lru_cache(maxsize=32)
def _ramp(length: int, at_start: bool, at_end: bool, device: torch.device) -> Tensor:
    """Weights (length,) that rise from 0 at the given ends to 1 within `FEATHER` of the length."""
    rising = ((torch.arange(length) + 0.5) / (FEATHER * length)).clamp(max=1)
    weights = torch.ones(length)
    if at_start:
        weights = torch.minimum(weights, rising)
    if at_end:
        weights = torch.minimum(weights, rising.flip(0))
    return weights.to(device)


def _in_photo(inner: BoxMask, inner_score: float, request: ZoomRequest) -> tuple[BoxMask, float]:
    """The photo's mask, which outside the view stays what it was, and its score; from those of the view."""
    before = request.previous
    if before is None or _holds_object(request.view, before):
        return inner.placed(request.size, *request.view[:2]), inner_score
    mask = replace_within(before.mask, request.view, inner)
    outside = mask.area - inner.area
    return mask, (inner_score * inner.area + before.score * outside) / max(1, mask.area)


def _holds_object(view: Box, before: ZoomState) -> bool:
    """Whether a view holds all of a mask."""
    return before.mask.empty or contains(view, before.mask.box)


def _state(request: ZoomRequest, probability: Tensor, mask: BoxMask, score: float, antialias: bool) -> ZoomState:
    """The state after an answer on the request's view, (h, w) in the network's dtype."""
    photo, view, before = whole_view(request.size), request.view, request.previous
    agreement = 0.0 if before is None else overlap(before.mask, mask)
    if view == photo:
        return ZoomState(probability, None, photo, mask, score, agreement)
    nothing = torch.zeros_like(probability)
    whole = _averaged_into(nothing if before is None else before.whole, photo, probability, view, antialias)
    if before is None or _holds_object(view, before):
        return ZoomState(whole, probability, view, mask, score, agreement)
    crop = before.crop
    if crop is not None:
        crop = _averaged_into(crop, before.view, probability, view, antialias)
    return ZoomState(whole, crop, before.view, mask, score, agreement)


def _averaged_into(target: Tensor, target_view: Box, source: Tensor, view: Box, antialias: bool) -> Tensor:
    """A copy of what is known over one view, (h, w), with an answer over another view in place of what was known
    there."""
    rows, columns = (
        _inside(length, over, stretch, antialias)
        for length, over, stretch in zip(target.shape, _stretches(target_view), _stretches(view), strict=True)
    )
    changed = target.clone()
    changed[rows, columns] = _resample(source, view, target_view, antialias, rows, columns).to(target.dtype)
    return changed


def _stretches(view: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """A view's rows and columns, as (first, end)."""
    return (view[0], view[2]), (view[1], view[3])


def _inside(length: int, over: tuple[int, int], stretch: tuple[int, int], antialias: bool) -> slice:
    """Of the network's `length` pixels over one stretch of the photo those whose centres lie in another."""
    first, last = np.searchsorted(_centres(length, over, antialias), (stretch[0] - 0.5, stretch[1] - 0.5))
    return slice(int(first), int(last))


def _resample(
    source: Tensor,
    source_view: Box,
    view: Box,
    antialias: bool,
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> Tensor:
    """A probability (h, w) over one view as float32 on some network pixels of another; beyond its border it goes on."""
    result = source.float()
    stretches = zip(_stretches(source_view), _stretches(view), strict=True)
    for length, (here, there), part in zip(source.shape, stretches, (rows, columns), strict=True):
        first, weights = _taps(length, here, there, antialias, source.device)
        result = weighted_rows(result.contiguous(), first[part], weights[part]).T
    return result.contiguous()


@lru_cache(maxsize=256)
def _taps(
    length: int, source: tuple[int, int], target: tuple[int, int], antialias: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Bilinear interpolation for `length` network pixels over one stretch of the photo from as many over another.

    The first of the neighbouring source pixels, (length,), and their weights, (length, K): a triangle that widens when
    shrinking, as in `F.interpolate` with antialiasing.
    """
    start, spacing = _grid(length, source, antialias)
    support = max(_grid(length, target, antialias)[1] / spacing, 1.0)
    position = np.clip((_centres(length, target, antialias) - start) / spacing, 0, length - 1)
    first = np.maximum(np.ceil(position - support), 0).astype(np.int64)
    pixels = first[:, None] + np.arange(math.floor(2 * support) + 1)
    weights = np.maximum(1 - np.abs(pixels - position[:, None]) / support, 0) * (pixels < length)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return torch.from_numpy(first).to(device), torch.from_numpy(weights).to(device)


def _centres(length: int, stretch: tuple[int, int], antialias: bool) -> NDArray[np.float64]:
    """Where the centres of a view's network pixels lie, in pixels of the photo, whose own centres are whole numbers."""
    start, spacing = _grid(length, stretch, antialias)
    return start + spacing * np.arange(length, dtype=np.float64)


def _grid(length: int, stretch: tuple[int, int], antialias: bool) -> tuple[float, float]:
    """The first of `_centres` and their distance: half-pixel centres, or aligned corners, as `Predictor` resizes."""
    extent = stretch[1] - stretch[0]
    if antialias:
        return stretch[0] + extent / length / 2 - 0.5, extent / length
    return float(stretch[0]), max(extent - 1, 1e-6) / max(length - 1, 1)
