"""The whole of a fine-tuning, in order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

from skipclick import Predictor
from skipclick.evaluation.bootstrap import PairedDifference
from skipclick.evaluation.datasets import Sample
from skipclick.model import SkipClick
from skipclick.proposals import Prototypes
from train.finetune.annotators import in_turns, owners_of_objects, shares
from train.finetune.config import FinetuneConfig, Progress
from train.finetune.examples import Example, TooFewError, load_images, split
from train.finetune.gate import ForAnnotator, Measured, differences, measured, promotion_gate
from train.finetune.interpolate import largest_safe_share
from train.finetune.loop import learn
from train.finetune.proposals import ProposalReport, measured_proposals, prototypes_of
from train.finetune.views import encoded_views


@dataclass(frozen=True)
class Report:
    """What was learnt from, the outcome, and whether to serve it."""

    config: FinetuneConfig
    num_objects: int
    num_images: int
    annotators: tuple[ForAnnotator, ...]
    """Whose objects taught the head, and how it does on theirs; those who taught most come first."""
    problems: tuple[str, ...]
    """What was wrong with images and masks that were left out."""
    step: int
    """The step after which the candidate's weights were taken; 0: nothing better was learnt."""
    share: float
    """Of the way from the starting weights to the learnt ones: as far as the retention set allows."""
    curve: tuple[tuple[int, float], ...]
    """(step, mean of NoC@85 and NoC@90 on held-out objects) at each check, from the base model on."""
    held_out: tuple[PairedDifference, ...]
    """The model in service against the candidate; these objects also chose the step, so it is slightly optimistic."""
    retention: tuple[PairedDifference, ...]
    seconds: float
    worth_promoting: bool
    reason: str
    proposals: ProposalReport | None = None
    """None if they were not measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A trained model, and its evaluation."""

    model: SkipClick
    report: Report
    before: Measured  # the model in service on the held-out objects
    after: Measured
    held_out: tuple[Sample, ...]
    prototypes: Prototypes | None = None
    """Of the objects that it learnt from; None if proposals were not measured."""


def finetune(
    base: SkipClick,
    examples: Sequence[Example],
    retention_set: Sequence[Sample],
    config: FinetuneConfig | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    in_service: SkipClick | None = None,
) -> Candidate:
    """A candidate that learnt from all examples, starting from `base` whatever was promoted before.

    in_service: the model that the candidate must beat, by default `base`. on_progress: called at every step; what it
    raises ends the work. Raises `TooFewError` if there is too little to learn from or to measure on.
    """
    config, begin = config or FinetuneConfig(), time.monotonic()
    in_service = in_service or base
    to_learn, to_hold_out = map(in_turns, split(examples))
    if len(examples) < config.min_objects or not to_hold_out:
        raise TooFewError(
            f"{_count(len(examples), 'object')} in {_count(len({e.key for e in examples}), 'image')} are too few: "
            f"it takes {config.min_objects} objects in at least 2 images"
        )
    problems: list[str] = []
    owners = owners_of_objects(to_hold_out)
    allowed = Counter(example.annotator for example in to_hold_out[: config.max_held_out])
    held_out = tuple(allowed_objects(load_images(to_hold_out, problems), owners, allowed))
    views = encoded_views(base, to_learn, config, problems, lambda share: on_progress(Progress("encoding", share)))
    if not held_out or not views:
        raise TooFewError(f"too few images can be used: {'; '.join(problems[:3]) or 'their objects are too small'}")

    def measure(model: SkipClick, samples: Sequence[Sample] = held_out) -> Measured:
        return measured(model, samples, config.device, config.zoom)

    on_progress(Progress("measuring"))
    start = measure(base)
    before = start if in_service is base else measure(in_service)
    learnt = learn(base, start, views, measure, config, on_progress)
    on_progress(Progress("measuring", step=learnt.step, noc=learnt.measured.noc))
    on_retention_set = cache(lambda model: measure(model, retention_set))
    limit = on_retention_set(base).clicks + config.retention_margin
    share, model = largest_safe_share(base, learnt.model, lambda model: on_retention_set(model).clicks <= limit)
    after = learnt.measured if share == 1 else measure(model)
    gain = differences("held out", base.version, before, after)
    loss = differences("retention set", base.version, on_retention_set(in_service), on_retention_set(model))
    by_annotator = for_annotators(to_learn, owners, before, after)
    worth_promoting, reason = promotion_gate(gain, loss, config.retention_margin, by_annotator)
    prototypes, proposals = None, None
    if config.proposal_images:
        on_progress(Progress("measuring", share=0.5, step=learnt.step))
        predictor = Predictor(model, device=config.device, keep_taps=True)
        prototypes = prototypes_of(predictor, to_learn, config.proposal_images)
        whole = tuple(islice(load_images(to_hold_out, []), config.proposal_images))  # with all their objects
        proposals = measured_proposals(predictor, prototypes, whole, to_hold_out) if whole else None
    report = Report(
        config=config,
        num_objects=len(examples),
        num_images=len({example.key for example in examples}),
        annotators=by_annotator,
        problems=tuple(problems),
        step=learnt.step,
        share=share,
        curve=learnt.curve,
        held_out=gain,
        retention=loss,
        seconds=time.monotonic() - begin,
        worth_promoting=worth_promoting,
        reason=reason,
        proposals=proposals,
    )
    return Candidate(model, report, before, after, held_out, prototypes)


def allowed_objects(
    samples: Iterable[Sample], owners: Mapping[tuple[str, int], str], allowed: Mapping[str, int]
) -> Iterator[Sample]:
    """The first samples, up to the allowed number of objects of each annotator."""
    left = Counter(allowed)
    for sample in samples:
        targets = {}
        for number, target in sample.targets.items():
            owner = owners[sample.name, number]
            if left[owner] > 0:
                targets[number] = target
                left[owner] -= 1
        if targets:
            yield replace(sample, targets=targets)
        if not left.total():
            return


def for_annotators(
    to_learn: Sequence[Example], owners: Mapping[tuple[str, int], str], before: Measured, after: Measured
) -> tuple[ForAnnotator, ...]:
    """What each annotator taught, and the candidate's effect on the held-out objects of each."""
    taught, by_share = Counter(example.annotator for example in to_learn), shares(to_learn)
    places: dict[str, list[int]] = {name: [] for name in taught}
    for place, one in enumerate(before.results):
        places.setdefault(owners[one.image, one.object_id], []).append(place)
    found = [
        ForAnnotator(
            name,
            taught[name],
            by_share.get(name, 0.0),
            tuple(float(clicks) for clicks in before.nocs.mean(axis=1)[of_one]),
            tuple(float(clicks) for clicks in after.nocs.mean(axis=1)[of_one]),
        )
        for name, of_one in places.items()
    ]
    return tuple(sorted(found, key=lambda one: (-one.share, one.annotator)))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
