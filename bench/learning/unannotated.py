"""What a head can say of photos that nobody annotated: where objects like the team's are, and which photos to do first.

    python bench/learning/unannotated.py --domain horses=folder:train_real@object cloth=folder:train_real@part

**Proposals.** A grid of points is clicked, one object each. What is stable (the mask hardly changes with its threshold)
and confident is kept, without overlaps; of it, what resembles accepted objects: by the cosine similarity of backbone
features, pooled over the mask, to its nearest accepted ones. Precision and recall are at an IoU of 75 %.

**What next.** How unsure the head is of a photo is how much its masks of the grid differ from those of the mirrored
photo. If that told what teaches most, photos that need more clicks would rank higher: Spearman's correlation.

Of each domain the last photos stand for what was accepted and others for what comes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import spearmanr

from bench.cli import CommandParser
from bench.learning.finetune import MAX_OF_PHOTO, Domain, annotatable
from skipclick import Click, Predictor, load_checkpoint
from skipclick.evaluation.datasets import Sample
from skipclick.evaluation.option_types import positive
from skipclick.features import ImageFeatures
from skipclick.metrics import mask_iou
from skipclick.predictor import ClickRequest
from train.finetune.gate import measured

SIDE = 8
"""Points of the grid along each side of the photo."""
LEAST_AREA, MOST_AREA = 0.002, 0.9  # of the photo
MOST_SHARED = 0.5  # of two proposals' union, and of the smaller one
QUALITY, SIMILARITY, HIT = 0.75, 0.8, 0.75
NUM_NEAREST = 3
BATCH = 16
SKIPPED = 12
"""First photos of a domain, on which the constants above were found."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """A mask, bool (H, W), and how good it seems: its score times its stability, in [0, 1]."""

    mask: NDArray[np.bool_]
    quality: float


def grid(size: tuple[int, int], side: int = SIDE) -> list[Click]:
    """Positive clicks in the middle of `side` times `side` parts of a photo of `size` (H, W)."""
    middles = (np.arange(side) + 0.5) / side
    return [Click(int(x * size[1]), int(y * size[0])) for y in middles for x in middles]


def masks_of(predictor: Predictor, features: ImageFeatures, clicks: Sequence[Click]) -> list[Proposal]:
    """The mask of each click alone."""
    found = []
    for first in range(0, len(clicks), BATCH):
        requests = [ClickRequest(features, [click]) for click in clicks[first : first + BATCH]]
        for prediction in predictor.predict(requests):
            sure, perhaps = ((prediction.state.float() > level).sum().item() for level in (0.7, 0.3))
            found.append(Proposal(prediction.mask.full(), prediction.score * sure / max(perhaps, 1)))
    return found


def without_overlaps(proposals: Sequence[Proposal]) -> list[Proposal]:
    """The best first; what shares more than `MOST_SHARED` with a better one, or is too small or large, is left out."""
    kept: list[Proposal] = []
    for one in sorted(proposals, key=lambda proposal: -proposal.quality):
        if LEAST_AREA < one.mask.mean() < MOST_AREA and not any(_overlap(one.mask, better.mask) for better in kept):
            kept.append(one)
    return kept


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    shared = np.count_nonzero(one & other)
    smaller = min(np.count_nonzero(one), np.count_nonzero(other))
    return shared > MOST_SHARED * smaller or mask_iou(one, other) > MOST_SHARED


def pooled(features: ImageFeatures, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A unit vector: the mean of each tap's features over a mask, bool (H, W), each tap alike. The first tap, edges and
    colours, is left out."""
    weights = torch.from_numpy(mask[None, None].astype(np.float32))
    vectors = []
    for tap in features.taps[1:]:  # (1, C, h, w)
        part = F.interpolate(weights, tap.shape[-2:], mode="area")[0]
        vectors.append(F.normalize((tap[0].float() * part).sum((1, 2)), dim=0))
    return np.asarray(F.normalize(torch.cat(vectors), dim=0).numpy())


def similarity(vector: NDArray[np.float32], accepted: NDArray[np.float32]) -> float:
    """The mean cosine similarity to the nearest of accepted objects, (N, C)."""
    return float(np.sort(accepted @ vector)[-NUM_NEAREST:].mean())


def mirrored_disagreement(predictor: Predictor, image: NDArray[np.uint8], masks: Sequence[Proposal]) -> float:
    """Mean of 1 - IoU of the grid's masks on a photo, uint8 (H, W, 3), and on the mirrored one."""
    clicks = [Click(image.shape[1] - 1 - click.x, click.y) for click in grid((image.shape[0], image.shape[1]))]
    others = masks_of(predictor, predictor.encode(np.ascontiguousarray(image[:, ::-1])), clicks)
    ious = [mask_iou(one.mask, other.mask[:, ::-1]) for one, other in zip(masks, others, strict=True)]
    return float(np.mean(1 - np.nan_to_num(ious, nan=1.0)))


def lines_of(predictor: Predictor, domain: Domain, num_photos: int) -> tuple[list[str], str]:
    """Of the two tables the rows of a domain. Raises `ValueError` where it has too few photos."""
    photos = domain.photos()
    if len(photos) < SKIPPED + 2 * num_photos:
        raise ValueError(f"{domain.name} has {len(photos)} photos, {SKIPPED + 2 * num_photos} are needed")
    accepted = []
    for photo in photos[-num_photos:]:
        sample = annotatable(photo.load(), 10**6)
        features = predictor.encode(sample.image)
        accepted += [pooled(features, target == 1) for target in sample.targets.values()]
    found, unsure, clicks = [], [], []
    num_objects = 0
    for photo in photos[SKIPPED : SKIPPED + num_photos]:
        sample = annotatable(photo.load(), 10**6)
        if not sample.targets:
            continue
        num_objects += len(sample.targets)
        features = predictor.encode(sample.image)
        masks = masks_of(predictor, features, grid(features.image_size))
        for one in without_overlaps(masks):
            best = max(mask_iou(one.mask, target) for target in sample.targets.values())
            found.append((one.quality, similarity(pooled(features, one.mask), np.array(accepted)), best >= HIT))
        unsure.append(mirrored_disagreement(predictor, sample.image, masks))
        clicks.append(_clicks(predictor, sample))
    quality, alike, hit = np.array(found).T
    rows = []
    for name, chosen in (
        ("no overlaps", quality >= 0),
        (f"quality from {QUALITY}", quality >= QUALITY),
        (f"and similarity from {SIMILARITY}", (quality >= QUALITY) & (alike >= SIMILARITY)),
    ):
        precision = f"{hit[chosen].mean():.2f}" if chosen.any() else "–"
        rows.append(
            f"| {domain.name} ({num_objects} objects) | {name} | {chosen.sum()} | {precision} "
            f"| {hit[chosen].sum() / num_objects:.2f} |"
        )
    rank = spearmanr(unsure, clicks)
    return (
        rows,
        f"| {domain.name} | {len(clicks)} | {np.mean(clicks):.2f} | {rank.statistic:+.2f} | {rank.pvalue:.2f} |",
    )


def _clicks(predictor: Predictor, sample: Sample) -> float:
    """The mean of NoC@85 and NoC@90 on a photo's largest objects."""
    return measured(predictor.model, [annotatable(sample, MAX_OF_PHOTO)]).clicks


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module. Returns the exit status: 0, or 2 for wrong input."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", nargs="+", required=True, metavar="NAME=LAYOUT:FOLDER[@KIND]")
    parser.add_argument("--model", default="bundled", help="the model (default: bundled)")
    parser.add_argument("--photos", type=positive, default=24, help="of each kind, accepted and to come (default: 24)")
    options = parser.parse_args(arguments)
    try:
        predictor = Predictor(load_checkpoint(options.model), keep_taps=True)
        proposals, order = [], []
        for domain in map(Domain.parse, options.domain):
            rows, line = lines_of(predictor, domain, options.photos)
            proposals += rows
            order.append(line)
    except (ValueError, OSError) as error:
        print(f"unannotated: {error}", file=sys.stderr)
        return 2
    print("| domain | proposals kept | number | precision | recall |", "|---|---|---:|---:|---:|", *proposals, sep="\n")
    print("\n| domain | photos | clicks | correlation | p |", "|---|---:|---:|---:|---:|", *order, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
