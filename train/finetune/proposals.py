"""Whether proposals would help a project: what its accepted objects look like, and what is proposed on other images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from skipclick import Predictor
from skipclick.evaluation.datasets import Sample
from skipclick.metrics import mask_iou
from skipclick.proposals import DEFAULT_RULE, ProposalRule, Prototypes, pooled, propose
from train.finetune.examples import Example, by_image, load_images

HIT = 0.75
"""Minimum IoU of a hit with an accepted object of the same label."""
MIN_PRECISION = 0.5
"""Minimum share of hits among the proposals: a wrong one costs a click to delete, a right one saves several."""
MIN_HITS = 3
"""Fewer hits may be chance."""
MAX_ACCEPTED = 100
"""Maximum number of objects of a label to remember."""


@dataclass(frozen=True)
class ProposalReport:
    """What proposals found on held-out images, by a head that learnt from the other images."""

    num_images: int
    num_objects: int
    num_proposals: int
    num_hits: int
    precision: float | None
    """Share of hits among the proposals; None if nothing was proposed."""
    recall: float
    """Share of the objects that were hit."""
    seconds: float
    """Per image."""
    helps: bool
    """Whether proposals may be shown: see `MIN_PRECISION` and `MIN_HITS`."""

    @property
    def figures(self) -> dict[str, float]:
        """The most important ones, for the list of versions."""
        shares = (
            {"recall": self.recall} if self.precision is None else {"precision": self.precision, "recall": self.recall}
        )
        return {"objects": self.num_objects, "proposals": self.num_proposals, **shares}


def prototypes_of(predictor: Predictor, examples: Sequence[Example], max_images: int) -> Prototypes:
    """What accepted objects look like, by label, on the first images; what cannot be read is skipped."""
    images = dict(islice(by_image(examples).items(), max_images))
    vectors = []
    for sample in load_images([one for of_image in images.values() for one in of_image], []):
        features = predictor.encode(sample.image)
        for number, target in sample.targets.items():
            vectors.append((images[sample.name][number - 1].label, pooled(features, target == 1)))
    by_label = Prototypes.of(vectors).vectors
    return Prototypes({label: rows[:MAX_ACCEPTED] for label, rows in by_label.items()})


def measured_proposals(
    predictor: Predictor,
    accepted: Prototypes,
    held_out: Sequence[Sample],
    examples: Sequence[Example],
    rule: ProposalRule = DEFAULT_RULE,
) -> ProposalReport:
    """Proposals on whole held-out images, the `load_images` of `examples`. At least one is needed."""
    images, begin = by_image(examples), time.monotonic()
    num_proposals = num_hits = 0
    for sample in held_out:
        labels = {number: images[sample.name][number - 1].label for number in sample.targets}
        proposals = propose(predictor, predictor.encode(sample.image), accepted, rule) if accepted.vectors else []
        num_proposals += len(proposals)
        for one in proposals:  # they are disjoint, so that no object is hit twice
            mask = one.mask.full()
            targets = (sample.targets[number] for number, label in labels.items() if label == one.label)
            num_hits += any(mask_iou(mask, target) >= HIT for target in targets)
    num_objects = sum(len(sample.targets) for sample in held_out)
    precision = num_hits / num_proposals if num_proposals else None
    return ProposalReport(
        num_images=len(held_out),
        num_objects=num_objects,
        num_proposals=num_proposals,
        num_hits=num_hits,
        precision=precision,
        recall=num_hits / num_objects,
        seconds=(time.monotonic() - begin) / len(held_out),
        helps=num_hits >= MIN_HITS and precision is not None and precision >= MIN_PRECISION,
    )
