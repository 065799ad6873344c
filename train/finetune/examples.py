"""Accepted masks as training examples, and which images are held out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets import Sample
from skipclick.evaluation.datasets.left_out import LeftOut, describe_left_out, left_out_for
from skipclick.evaluation.datasets.sample import NO_PIXEL, OTHER_SIZE

HELD_OUT_SHARE = 0.25  # of the images, by their hash ...
HELD_OUT_AT_LEAST = 0.2  # ... and at least this, whatever the hashes of a few images are


class TooFewError(ValueError):
    """There is not enough to learn from; the message says what is missing."""


@dataclass(frozen=True)
class Example:
    """One accepted mask. Both functions raise `ValueError` if image or mask cannot be loaded."""

    key: str
    """Of the image: examples of one image share it."""
    image: Callable[[], NDArray[np.uint8]]
    """RGB (H, W, 3)."""
    target: Callable[[], NDArray[np.int8]]
    """(H, W): 1 object, 0 background, -1 ignored."""
    annotator: str = ""
    """Who accepted it; the same name for all unknown annotators."""
    label: str = ""
    """The object's label in the project."""


def by_image(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Examples by image, in their order."""
    found: dict[str, list[Example]] = {}
    for example in examples:
        found.setdefault(example.key, []).append(example)
    return found


def split(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """(to learn from, held out), by image: at least a fifth of the images is held out, none if there is only one;
    and at least a fifth of each annotator's, if there are two or more.

    An image's hash alone decides its side, so it stays there when others are added; only if too few hashes are low (or
    all of them are) do the next images change sides.
    """
    ranks = {key: zlib.crc32(key.encode()) / 2**32 for key in by_image(examples)}
    order = sorted(ranks, key=lambda key: (ranks[key], key))
    wanted = {key for key in ranks if ranks[key] < HELD_OUT_SHARE} | set(order[: _at_least(len(order))])
    for annotator in {example.annotator for example in examples}:
        own = {example.key for example in examples if example.annotator == annotator}
        if len(own) > 1:
            wanted.update([key for key in order if key in own][: _at_least(len(own))])
    held_out = set([key for key in order if key in wanted][: len(order) // 2])
    return [e for e in examples if e.key not in held_out], [e for e in examples if e.key in held_out]


def _at_least(num_images: int) -> int:
    return -int(-HELD_OUT_AT_LEAST * num_images // 1)


def load_image(examples: Sequence[Example]) -> Sample:
    """All examples of one image as a sample of the benchmark, without masks that cannot be used.

    Raises `ValueError`, saying what is wrong, if the image cannot be loaded or none of its masks can be used.
    """
    key, image = examples[0].key, examples[0].image()
    targets: dict[int, NDArray[np.int8]] = {}
    left_out: list[LeftOut] = []
    for number, example in enumerate(examples, 1):
        try:
            target = example.target()
        except ValueError as error:
            left_out.append(left_out_for(error))
            continue
        if target.shape != image.shape[:2]:
            sizes = f"a mask has the shape {target.shape}, its image {image.shape[:2]}"
            left_out.append(LeftOut(OTHER_SIZE, f"{key}: {sizes}"))
        elif (target == 1).any():
            targets[number] = target
        else:
            left_out.append(LeftOut(NO_PIXEL, f"{key}: a mask is empty"))
    if not targets:
        raise ValueError(f"{key}: none of its masks can be used: {'; '.join(describe_left_out(left_out))}")
    return Sample(key, image, targets, left_out=tuple(left_out))


def load_images(examples: Iterable[Example], problems: list[str]) -> Iterable[Sample]:
    """Each image with its objects; what cannot be used is added to `problems`."""
    for of_image in by_image(examples).values():
        try:
            sample = load_image(of_image)
        except ValueError as error:
            problems.append(str(error))
            continue
        problems += [one.example for one in sample.left_out]
        yield sample
