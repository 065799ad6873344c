"""Whose objects a head learns from: annotators take turns, and each supplies a limited share.

It is not known who draws wrong masks, so nobody is left out; `gate` checks the outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from train.finetune.examples import Example, by_image


def largest_share(num_annotators: int) -> float:
    """The largest share of the drawn objects that may be one annotator's: with two annotators any, with three 2/3, with
    more 1/2.

    Not less, or the few objects of the others would be drawn over and over, and their masks may be the wrong ones.
    """
    return max(0.5, min(1.0, 2 / num_annotators))


def in_turns(examples: Iterable[Example]) -> list[Example]:
    """The examples reordered: the first of each annotator, then the second of each, and so on.

    So the first few include all annotators. Each annotator's examples keep their order."""
    seen: Counter[str] = Counter()
    turns = []
    for example in examples:
        turns.append((seen[example.annotator], example))
        seen[example.annotator] += 1
    return [example for _, example in sorted(turns, key=lambda turn: turn[0])]


def shares(examples: Sequence[Example]) -> dict[str, float]:
    """The share of each annotator's objects among the drawn ones, in the order of the examples."""
    counts = Counter(example.annotator for example in examples)
    limit, total = largest_share(max(1, len(counts))), len(examples)
    found = {name: count / total for name, count in counts.items()}
    for name, share in found.items():
        if share > limit:  # at most one is: no limit is below a half
            rest = (1 - limit) / (1 - share)
            return {other: limit if other == name else value * rest for other, value in found.items()}
    return found


def weights_by_image(examples: Sequence[Example]) -> Mapping[str, float]:
    """Relative probability with which an object of each image is drawn, 1 on average over all objects."""
    counts = Counter(example.annotator for example in examples)
    wanted = shares(examples)
    by_annotator = {name: wanted[name] * len(examples) / count for name, count in counts.items()}
    return {
        key: sum(by_annotator[example.annotator] for example in of_image) / len(of_image)
        for key, of_image in by_image(examples).items()
    }


def owners_of_objects(examples: Sequence[Example]) -> dict[tuple[str, int], str]:
    """The annotator of each object in the samples that `load_images` makes of the examples, by (image, object)."""
    return {
        (key, number): example.annotator
        for key, of_image in by_image(examples).items()
        for number, example in enumerate(of_image, 1)
    }
