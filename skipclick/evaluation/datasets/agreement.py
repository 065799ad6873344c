"""Which of a task's annotations counts, where several people have annotated it.

The ground truth; otherwise the one that agrees best with those of other annotators; otherwise the oldest, by its id.
Agreement needs three annotators: between two, nobody can tell who is right. Each annotator counts once, with their
oldest annotation, so adding a second one changes nothing; an annotation that is corrected keeps its id and place.

The agreement of two annotations is a mean over the objects of both: the IoU of each with the most similar object of the
other annotation. It is computed from sketches of the masks, which are small enough for a database.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick.evaluation.datasets.label_studio import AnnotatedObject, Annotation
from skipclick.masks import BoxMask

SIDE = 128  # cells of a sketch in each direction
MAX_COMPARED = 300
"""Objects of a task's annotations together; with more, agreement is not computed. They take 40 MB."""
_DECIMALS = 6  # more would let rounding decide between annotations that agree equally

Usable = Sequence[tuple[AnnotatedObject, BoxMask]]
"""The objects of an annotation whose masks can be decoded."""


@dataclass(frozen=True)
class Sketched:
    """An annotation with the sketches of its usable objects, by the reference of their image."""

    id: int
    annotator: int | None
    """None: unknown; all unknown annotators count as one."""
    ground_truth: bool
    sketches: Mapping[str, Sequence[bytes]]


def sketch(mask: NDArray[np.bool_]) -> bytes:
    """How much of each cell of a grid over the photo a mask, bool (H, W), covers: uint8 (SIDE, SIDE), deflated."""
    covered = cv2.resize(mask.astype(np.uint8) * 255, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return zlib.compress(covered.tobytes(), 1)


def choose(annotations: Sequence[Annotation], decode: Callable[[Annotation], Usable]) -> tuple[int | None, Usable]:
    """The place of the annotation that counts, and its usable objects; None where no annotation has any.

    decode: called at most once for an annotation, and only for those that are needed.
    """
    if len({one.annotator for one in annotations if one.objects}) >= 3:
        usable = [decode(one) for one in annotations]
        places = [place for place, objects in enumerate(usable) if objects]
        order = in_order_of_choice([_sketched(annotations[place], usable[place]) for place in places])
        return (places[order[0]], usable[places[order[0]]]) if places else (None, ())
    for place in sorted(range(len(annotations)), key=lambda i: (not annotations[i].ground_truth, annotations[i].id)):
        if objects := decode(annotations[place]):
            return place, objects
    return None, ()


def _sketched(annotation: Annotation, usable: Usable) -> Sketched:
    sketches: dict[str, list[bytes]] = {}
    for one, mask in usable:
        sketches.setdefault(one.image, []).append(sketch(mask.full()))
    return Sketched(annotation.id, annotation.annotator, annotation.ground_truth, sketches)


def in_order_of_choice(annotations: Sequence[Sketched]) -> list[int]:
    """The places of a task's annotations, all of which have objects; the one that counts comes first."""
    agreed = agreements(annotations)
    return sorted(
        range(len(annotations)), key=lambda i: (not annotations[i].ground_truth, -agreed[i], annotations[i].id)
    )


def agreements(annotations: Sequence[Sketched]) -> list[float]:
    """How far each annotation agrees with those of the other annotators, in [0, 1]; 0 where nobody can tell."""
    oldest: dict[int | None, int] = {}  # the place of each annotator's oldest annotation
    for place in sorted(range(len(annotations)), key=lambda i: annotations[i].id):
        oldest.setdefault(annotations[place].annotator, place)
    agreed = [0.0] * len(annotations)
    compared = [annotations[place].sketches for place in oldest.values()]
    if len(compared) < 3 or sum(len(sketches) for one in compared for sketches in one.values()) > MAX_COMPARED:
        return agreed
    similarities, sizes = np.zeros((len(compared), len(compared))), np.zeros(len(compared))
    for image in sorted({image for one in compared for image in one}):
        of_image = [one.get(image, ()) for one in compared]
        similarities += _summed_similarities(of_image)
        sizes += [len(sketches) for sketches in of_image]
    pairs = similarities / (sizes[:, None] + sizes[None, :])
    means = (pairs.sum(axis=1) - pairs.diagonal()) / (len(compared) - 1)
    for place, mean in zip(oldest.values(), means.tolist(), strict=True):
        agreed[place] = round(mean, _DECIMALS)
    return agreed


def _summed_similarities(annotations: Sequence[Sequence[bytes]]) -> NDArray[np.float64]:
    """For each two of N annotations of one image, the sum over the objects of both of the IoU with the most similar
    object of the other: float64 (N, N)."""
    owners = np.repeat(np.arange(len(annotations)), [len(sketches) for sketches in annotations])
    inflated = [zlib.decompress(one) for sketches in annotations for one in sketches]
    cells = np.array([np.frombuffer(one, np.uint8) for one in inflated], np.float64).reshape(len(owners), SIDE * SIDE)
    common = cells @ cells.T  # whole numbers, so exact in any order
    areas = common.diagonal()
    # Without partly covered cells this is the IoU; equal sketches have 1 in any case.
    similar = common / np.maximum(areas[:, None] + areas[None, :] - common, 1.0)
    best = np.zeros((len(owners), len(annotations)))
    for index in range(len(annotations)):
        if (owners == index).any():
            best[:, index] = similar[:, owners == index].max(axis=1)
    sums = np.zeros((len(annotations), len(annotations)))
    np.add.at(sums, owners, best)
    return sums + sums.T
