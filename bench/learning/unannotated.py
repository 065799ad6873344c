"""What a head can say of photos that nobody annotated: where objects like the team's are, and which photos to do first.

    python bench/learning/unannotated.py --domain horses=folder:train_real@object cloth=folder:train_real@part

**Proposals.** `skipclick.proposals`, as the server makes them, from the accepted photos' objects: precision and recall
at an IoU of 75 %, after each of its steps. A mask is right where it is an object of the photo.

**What next.** How unsure the head is of a photo is how much its masks of the grid differ from those of the mirrored
photo. If that told what teaches most, photos that need more clicks would rank higher: Spearman's correlation.

Of each domain the last photos stand for what was accepted and others for what comes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from bench.cli import CommandParser
from bench.learning.finetune import MAX_OF_PHOTO, Domain, annotatable
from skipclick import Click, Predictor, load_checkpoint
from skipclick.evaluation.datasets import Sample
from skipclick.evaluation.option_types import positive
from skipclick.features import ImageFeatures
from skipclick.metrics import mask_iou
from skipclick.proposals import Candidate, ProposalRule, Prototypes, candidates, enlarged, grid, pooled, propose
from train.finetune.gate import measured

RULE = ProposalRule()
HIT = 0.75
"""IoU with an object from which on a mask is it."""
BATCH = 16
SKIPPED = 12
"""First photos of a domain, on which `ProposalRule`'s constants were found."""


@dataclass(frozen=True, eq=False)
class Found:
    """One mask on a photo."""

    photo: int
    best: int
    """Of the photo's objects the one that it is most like."""
    is_hit: bool


def masks_of(predictor: Predictor, features: ImageFeatures, side: int) -> list[Candidate]:
    """The mask of each point of the grid alone."""
    clicks = grid(features.image_size, side)
    batches = (clicks[first : first + BATCH] for first in range(0, len(clicks), BATCH))
    return [one for batch in batches for one in candidates(predictor, features, batch)]


def found_on(photo: int, sample: Sample, masks: Iterable[NDArray[np.bool_]]) -> list[Found]:
    """What masks, bool (H, W), are on a photo."""
    targets = list(sample.targets.values())
    ious = ([mask_iou(mask, target) for target in targets] for mask in masks)
    return [Found(photo, int(np.argmax(one)), max(one) >= HIT) for one in ious]


def mirrored_disagreement(predictor: Predictor, image: NDArray[np.uint8], masks: Sequence[Candidate]) -> float:
    """Mean of 1 - IoU of the grid's masks on a photo, uint8 (H, W, 3), and on the mirrored one."""
    clicks = [Click(image.shape[1] - 1 - one.click.x, one.click.y) for one in masks]
    mirrored = predictor.encode(np.ascontiguousarray(image[:, ::-1]))
    others = [one for click in clicks for one in candidates(predictor, mirrored, [click])]
    ious = [mask_iou(one.mask, other.mask[:, ::-1]) for one, other in zip(masks, others, strict=True)]
    return float(np.mean(1 - np.nan_to_num(ious, nan=1.0)))


def lines_of(predictor: Predictor, domain: Domain, num_photos: int) -> tuple[list[str], str]:
    """Of the two tables the rows of a domain. Raises `ValueError` where it has too few photos."""
    photos = domain.photos()
    if len(photos) < SKIPPED + 2 * num_photos:
        raise ValueError(f"{domain.name} has {len(photos)} photos, {SKIPPED + 2 * num_photos} are needed")
    vectors = []
    for photo in photos[-num_photos:]:
        sample = annotatable(photo.load(), 10**6)
        features = predictor.encode(sample.image)
        vectors += [(domain.name, pooled(features, target == 1)) for target in sample.targets.values()]
    accepted = Prototypes.of(vectors)
    steps: dict[str, list[Found]] = {
        f"{RULE.side} x {RULE.side} clicks": [],
        f"quality from {RULE.quality}": [],
        f"and similarity from {RULE.similarity}": [],
        "without overlaps: proposals": [],
    }
    clicked, good, alike, proposed = steps.values()
    unsure, clicks, seconds, num_objects = [], [], [], 0
    for number, photo in enumerate(photos[SKIPPED : SKIPPED + num_photos]):
        sample = annotatable(photo.load(), 10**6)
        if not sample.targets:
            continue
        num_objects += len(sample.targets)
        features = predictor.encode(sample.image)
        masks = masks_of(predictor, features, RULE.side)
        found = found_on(number, sample, (enlarged(predictor, one, features.image_size).full() for one in masks))
        for one, mask in zip(found, masks, strict=True):
            clicked.append(one)
            if mask.quality >= RULE.quality and RULE.min_area < mask.mask.mean() < RULE.max_area:
                good.append(one)
                if accepted.nearest(pooled(features, mask.mask), RULE.num_nearest)[1] >= RULE.similarity:
                    alike.append(one)
        begin = time.perf_counter()
        proposals = propose(predictor, features, accepted, RULE)
        seconds.append(time.perf_counter() - begin)
        proposed += found_on(number, sample, (one.mask.full() for one in proposals))
        unsure.append(mirrored_disagreement(predictor, sample.image, masks))
        clicks.append(_clicks(predictor, sample))
    rows = [
        f"| {domain.name} ({num_objects} objects) | {name} | {len(found)} | {_share(found)} "
        f"| {len({(one.photo, one.best) for one in found if one.is_hit}) / num_objects:.2f} |"
        for name, found in steps.items()
    ]
    rank = spearmanr(unsure, clicks)
    means = f"{np.median(seconds):.2f} | {np.mean(clicks):.2f}"
    return rows, f"| {domain.name} | {len(clicks)} | {means} | {rank.statistic:+.2f} | {rank.pvalue:.2f} |"


def _share(found: Sequence[Found]) -> str:
    """Of masks those that are an object."""
    return f"{np.mean([one.is_hit for one in found]):.2f}" if found else "–"


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
    print("| domain | masks | number | precision | recall |", "|---|---|---:|---:|---:|", *proposals, sep="\n")
    print(
        "\n| domain | photos | seconds for proposals | clicks | correlation | p |",
        "|---|---:|---:|---:|---:|---:|",
        *order,
        sep="\n",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
