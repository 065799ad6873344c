"""Proposals: objects that resemble accepted ones, found on a photo without an annotator's clicks.

A grid of points is clicked, one object each. Masks that are confident, stable (they hardly change with the threshold)
and similar to accepted objects are proposed; of overlapping ones, the best. The similarity of two objects is the cosine
similarity of the backbone's features, pooled over their masks; a proposal has the label of its nearest accepted
objects.

    accepted = Prototypes.of([("Ski", pooled(predictor.encode(photo), mask)), ...])
    proposals = propose(predictor, predictor.encode(another_photo), accepted)

The predictor must keep the taps (`keep_taps=True`). docs/results/finetune.md has measurements.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from skipclick.cleaning import clean
from skipclick.features import ImageFeatures
from skipclick.masks import MASK_THRESHOLD, BoxMask, enlarge
from skipclick.metrics import mask_iou
from skipclick.predictor import ClickRequest, Predictor
from skipclick.prompts import Click, scale_clicks

T = TypeVar("T")

HIGH, LOW = 0.7, 0.3
"""Thresholds of the probability; the area of a stable mask is nearly the same at both."""

_KEY = "label:"  # before each label in a file


@dataclass(frozen=True, kw_only=True)
class ProposalRule:
    """When a mask is proposed; the defaults were tuned on photos other than those in docs/results/finetune.md."""

    side: int = 8
    """Points of the grid along each side of the photo."""
    min_area: float = 0.002
    """Minimum share of the photo that a mask covers ..."""
    max_area: float = 0.9
    """... and maximum."""
    quality: float = 0.75
    similarity: float = 0.75
    num_nearest: int = 3
    """Accepted objects whose mean similarity counts."""
    max_shared: float = 0.5
    """Maximum share of the union of two masks, or of the smaller one, that they may have in common; otherwise only the
    better one is proposed."""
    min_part: float = 0.001
    """Share of a mask: smaller islands are removed and smaller holes filled."""


DEFAULT_RULE = ProposalRule()


@dataclass(frozen=True, eq=False)
class Candidate:
    """The answer to a single click, at the network's resolution."""

    click: Click
    """In pixels of the photo."""
    probability: Tensor
    """float32 (H, W) on the device."""
    mask: NDArray[np.bool_]
    """(H, W)."""
    quality: float
    """The mean probability inside the mask times its stability, in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """A mask, and the label of what it resembles."""

    mask: BoxMask
    label: str
    quality: float
    """As `Candidate.quality`."""
    similarity: float
    """To the nearest accepted objects of the label, at most 1."""


@dataclass(frozen=True, eq=False)
class Prototypes:
    """What accepted objects look like to the backbone."""

    vectors: Mapping[str, NDArray[np.float32]]
    """By label, in the labels' order: (N, C), at least one unit vector of `pooled` each."""

    @staticmethod
    def of(accepted: Iterable[tuple[str, NDArray[np.float32]]]) -> Prototypes:
        """From accepted objects: their labels and vectors."""
        found: defaultdict[str, list[NDArray[np.float32]]] = defaultdict(list)
        for label, vector in accepted:
            found[label].append(vector)
        return Prototypes({label: np.stack(found[label]) for label in sorted(found)})

    @staticmethod
    def from_bytes(content: bytes) -> Prototypes:
        """What `to_bytes` made. Raises `ValueError` with one sentence for anything else."""
        try:
            arrays = load(content)
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"these are not prototypes ({error})") from None
        widths = {array.shape[1:] for array in arrays.values()}
        is_sound = all(
            key.startswith(_KEY) and array.dtype == np.float32 and array.ndim == 2 and len(array)
            for key, array in arrays.items()
        )
        if not is_sound or len(widths) > 1 or not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("these are not prototypes: each label must have rows of finite float32, all equally long")
        return Prototypes({key.removeprefix(_KEY): arrays[key] for key in sorted(arrays)})

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return bytes(save({_KEY + label: np.ascontiguousarray(rows) for label, rows in self.vectors.items()}))

    def nearest(self, vector: NDArray[np.float32], count: int) -> tuple[str, float]:
        """The label of which the `count` objects nearest to `vector`, (C,), are most similar to it on average, and that
        similarity. Raises `ValueError` if no object was accepted."""
        if not self.vectors:
            raise ValueError("there are no accepted objects to compare with")
        similarities = {label: float(np.sort(rows @ vector)[-count:].mean()) for label, rows in self.vectors.items()}
        label = max(similarities, key=similarities.__getitem__)  # the first of equal ones
        return label, similarities[label]


def grid(size: tuple[int, int], side: int) -> list[Click]:
    """Positive clicks in the middle of `side` times `side` parts of a photo of `size` (H, W)."""
    middles = (np.arange(side) + 0.5) / side
    return [Click(int(x * size[1]), int(y * size[0])) for y in middles for x in middles]


@torch.inference_mode()
def candidates(predictor: Predictor, features: ImageFeatures, clicks: Sequence[Click]) -> list[Candidate]:
    """The answer to each click alone; all of them run as one batch."""
    probabilities = predictor.probabilities([ClickRequest(features, [click]) for click in clicks])  # (B, H, W)
    inside = probabilities > MASK_THRESHOLD
    areas, areas_high, areas_low = (level.sum((1, 2)) for level in (inside, probabilities > HIGH, probabilities > LOW))
    qualities = (probabilities * inside).sum((1, 2)) / areas.clamp(min=1) * areas_high / areas_low.clamp(min=1)
    found = zip(clicks, probabilities, inside.cpu().numpy(), qualities.tolist(), strict=True)
    return [Candidate(*one) for one in found]


@torch.inference_mode()
def pooled(features: ImageFeatures, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The backbone's features under a mask, bool (H, W) of any resolution, as a unit vector (C,): the means of each
    tap's features, equally weighted. The first tap, which has edges and colours, is left out.

    Raises `ValueError` if the features have no taps.
    """
    if not features.taps:
        raise ValueError("these features hold no taps; encode with keep_taps=True")
    vectors = []
    for tap in features.taps[1:]:  # (1, C, h, w)
        weights = torch.from_numpy(mask[None, None].astype(np.float32)).to(tap.device)
        part = F.interpolate(weights, tap.shape[-2:], mode="area")[0]
        vectors.append(F.normalize((tap[0].float() * part).sum((1, 2)), dim=0))
    return np.asarray(F.normalize(torch.cat(vectors), dim=0).cpu().numpy())


def enlarged(predictor: Predictor, candidate: Candidate, size: tuple[int, int]) -> BoxMask:
    """A candidate's mask on its photo of `size` (H, W)."""
    with torch.inference_mode():
        return enlarge(candidate.probability, size, antialias=predictor.model.config.antialias).fetch()[0]


class Run(Protocol):
    """Calls what it is given: at once, or when it is its turn on a shared device."""

    def __call__(self, work: Callable[[], T], /) -> T: ...


def _at_once(work: Callable[[], T], /) -> T:
    return work()


def propose(
    predictor: Predictor,
    features: ImageFeatures,
    accepted: Prototypes,
    rule: ProposalRule = DEFAULT_RULE,
    *,
    batch: int = 1,
    run: Run = _at_once,
) -> list[Proposal]:
    """Proposals on a photo, the best first. No two of them share a pixel.

    Args:
        features: from a predictor with the same model and resolution, with taps.
        batch: number of clicks that run together; the last bits of a probability may depend on it.
        run: called with parts of the work, of at most `batch` clicks each. What it raises is passed on.
    """
    found: list[tuple[Candidate, str, float]] = []
    waiting = grid(features.image_size, rule.side)
    while waiting:
        now, waiting = waiting[:batch], waiting[batch:]
        found += run(partial(_similar_candidates, predictor, features, now, accepted, rule))
        waiting = [click for click in waiting if not _lies_in(click, found, features.image_size)]
    proposals: list[Proposal] = []
    taken = np.zeros(features.image_size, np.bool_)
    for candidate, label, similarity in _without_overlaps(found, rule):
        whole = run(partial(enlarged, predictor, candidate, features.image_size))
        mask = _outside(clean(whole, [candidate.click], rule.min_part), taken)
        if np.count_nonzero(mask.pixels) > rule.min_area * taken.size:
            top, left, bottom, right = mask.box
            taken[top:bottom, left:right] |= mask.pixels
            proposals.append(Proposal(mask, label, candidate.quality, similarity))
    return proposals


def _similar_candidates(
    predictor: Predictor, features: ImageFeatures, clicks: Sequence[Click], accepted: Prototypes, rule: ProposalRule
) -> list[tuple[Candidate, str, float]]:
    """The good masks among the clicks' answers that resemble accepted objects, with label and similarity."""
    found = []
    for one in candidates(predictor, features, clicks):
        if one.quality >= rule.quality and rule.min_area < one.mask.mean() < rule.max_area:
            label, similarity = accepted.nearest(pooled(features, one.mask), rule.num_nearest)
            if similarity >= rule.similarity:
                found.append((one, label, similarity))
    return found


def _lies_in(click: Click, found: Sequence[tuple[Candidate, str, float]], size: tuple[int, int]) -> bool:
    """Whether a click lies in a mask already found: it would only find the same object again."""
    if not found:
        return False
    height, width = found[0][0].mask.shape
    (at,) = scale_clicks([click], size, (height, width))
    row, column = min(int(at.y), height - 1), min(int(at.x), width - 1)
    return any(bool(one.mask[row, column]) for one, _, _ in found)


def _without_overlaps(
    found: Iterable[tuple[Candidate, str, float]], rule: ProposalRule
) -> list[tuple[Candidate, str, float]]:
    """The best first; masks that overlap a better one by more than the rule allows are left out."""
    kept: list[tuple[Candidate, str, float]] = []
    for one in sorted(found, key=lambda entry: -entry[0].quality):
        if not any(_overlap(one[0].mask, better[0].mask, rule.max_shared) for better in kept):
            kept.append(one)
    return kept


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_], max_shared: float) -> bool:
    smaller = min(np.count_nonzero(one), np.count_nonzero(other))
    return np.count_nonzero(one & other) > max_shared * smaller or mask_iou(one, other) > max_shared


def _outside(mask: BoxMask, taken: NDArray[np.bool_]) -> BoxMask:
    """A mask without the pixels that are taken, bool (H, W) of the photo."""
    top, left, bottom, right = mask.box
    return BoxMask.of(mask.pixels & ~taken[top:bottom, left:right]).placed(mask.size, top, left)
