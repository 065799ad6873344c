"""Whose objects a head learns from: annotators take turns, and none supplies more than a share.

Who draws wrong masks is not known here, so nobody is left out; see `gate` for what is asked of the outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from train.finetune.examples import Example, by_image


def largest_share(num_annotators: int) -> float:
    """Of the objects that are drawn, what one annotator may teach: of two anything, of three 2/3, of more a half.

    Not less: the few objects of all others would be drawn over and over, and who draws wrong masks may be one of them.
    """
    return max(0.5, min(1.0, 2 / num_annotators))


def in_turns(examples: Iterable[Example]) -> list[Example]:
    """The examples reordered: the first of each annotator, then the second of each, and so on.

    Where there is room for some only, all annotators are among them. Those of one keep their order."""
    seen: Counter[str] = Counter()
    turns = []
    for example in examples:
        turns.append((seen[example.annotator], example))
        seen[example.annotator] += 1
    return [example for _, example in sorted(turns, key=lambda turn: turn[0])]


def shares(examples: Sequence[Example]) -> dict[str, float]:
    """The share of each annotator's objects in the sampled ones, in their order."""
    counts = Counter(example.annotator for example in examples)
    most, total = largest_share(max(1, len(counts))), len(examples)
    found = {name: count / total for name, count in counts.items()}
    for name, share in found.items():
        if share > most:  # of one at most: no share is below a half
            rest = (1 - most) / (1 - share)
            return {other: most if other == name else value * rest for other, value in found.items()}
    return found


def weights_by_image(examples: Sequence[Example]) -> Mapping[str, float]:
    """How likely an object of each image is drawn, 1 on average over all objects."""
    counts = Counter(example.annotator for example in examples)
    wanted = shares(examples)
    of_one = {name: wanted[name] * len(examples) / count for name, count in counts.items()}
    return {
        key: sum(of_one[example.annotator] for example in of_image) / len(of_image)
        for key, of_image in by_image(examples).items()
    }


def owners_of_objects(examples: Sequence[Example]) -> dict[tuple[str, int], str]:
    """The annotator of each object of the samples that `load_images` makes of the examples: by (image, object)."""
    return {
        (key, number): example.annotator
        for key, of_image in by_image(examples).items()
        for number, example in enumerate(of_image, 1)
    }
