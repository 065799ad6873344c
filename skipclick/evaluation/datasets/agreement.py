"""Which of a task's annotations counts, where several people have annotated it.

The ground truth; else the one that agrees best with those of the others; else the oldest, by its id. To agree takes
three annotators: of two nobody can tell who is right. Each counts once, with the oldest annotation; so an annotator who
adds a second one, or a later one to somebody else's, changes nothing. Who corrects an annotation keeps its place.

Two annotations agree as far as their objects do: of each object on either side the IoU with the most similar one on
the other, and the mean of these. It is taken on sketches, which are small enough for a database.
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
"""Objects of a task's annotations together; of more, agreement decides nothing. They take 40 MB."""
_DECIMALS = 6  # more would let rounding decide between annotations that agree equally

Usable = Sequence[tuple[AnnotatedObject, BoxMask]]
"""The objects of an annotation whose masks can be decoded."""


@dataclass(frozen=True)
class Sketched:
    """An annotation with the sketches of its usable objects, by the reference of their image."""

    id: int
    annotator: int | None
    """None: unknown; all of whom nothing is known are taken for one."""
    ground_truth: bool
    sketches: Mapping[str, Sequence[bytes]]


def sketch(mask: NDArray[np.bool_]) -> bytes:
    """What a mask, bool (H, W), covers of each cell of a grid over the photo: uint8 (SIDE, SIDE), deflated."""
    covered = cv2.resize(mask.astype(np.uint8) * 255, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return zlib.compress(covered.tobytes(), 1)


def choose(annotations: Sequence[Annotation], decode: Callable[[Annotation], Usable]) -> tuple[int | None, Usable]:
    """The place of the annotation that counts, and its usable objects; None where no annotation has any.

    decode: called once for an annotation, and not for all where that is not needed.
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
    """The places of a task's annotations, all of which have objects; that of the one that counts comes first."""
    agreed = agreements(annotations)
    return sorted(
        range(len(annotations)), key=lambda i: (not annotations[i].ground_truth, -agreed[i], annotations[i].id)
    )


def agreements(annotations: Sequence[Sketched]) -> list[float]:
    """How far each annotation agrees with those of the other annotators, in [0, 1]; 0 where nobody can tell."""
    heard: dict[int | None, int] = {}  # the place of each annotator's oldest
    for place in sorted(range(len(annotations)), key=lambda i: annotations[i].id):
        heard.setdefault(annotations[place].annotator, place)
    agreed = [0.0] * len(annotations)
    voices = [annotations[place].sketches for place in heard.values()]
    if len(voices) < 3 or sum(len(sketches) for voice in voices for sketches in voice.values()) > MAX_COMPARED:
        return agreed
    likenesses, sizes = np.zeros((len(voices), len(voices))), np.zeros(len(voices))
    for image in sorted({image for voice in voices for image in voice}):
        of_image = [voice.get(image, ()) for voice in voices]
        likenesses += _likenesses(of_image)
        sizes += [len(sketches) for sketches in of_image]
    pairs = likenesses / (sizes[:, None] + sizes[None, :])
    means = (pairs.sum(axis=1) - pairs.diagonal()) / (len(voices) - 1)
    for place, mean in zip(heard.values(), means.tolist(), strict=True):
        agreed[place] = round(mean, _DECIMALS)
    return agreed


def _likenesses(annotations: Sequence[Sequence[bytes]]) -> NDArray[np.float64]:
    """float64 (N, N) for N annotations of one image: of two, the sum over the objects of both of the similarity to the
    most similar object of the other."""
    owners = np.repeat(np.arange(len(annotations)), [len(sketches) for sketches in annotations])
    inflated = [zlib.decompress(one) for sketches in annotations for one in sketches]
    cells = np.array([np.frombuffer(one, np.uint8) for one in inflated], np.float64).reshape(len(owners), SIDE * SIDE)
    common = cells @ cells.T  # whole numbers, so exact in any order
    areas = common.diagonal()
    # Of masks without partly covered cells this is the IoU; equal sketches have 1 in any case.
    similar = common / np.maximum(areas[:, None] + areas[None, :] - common, 1.0)
    best = np.zeros((len(owners), len(annotations)))
    for index in range(len(annotations)):
        if (owners == index).any():
            best[:, index] = similar[:, owners == index].max(axis=1)
    sums = np.zeros((len(annotations), len(annotations)))
    np.add.at(sums, owners, best)
    return sums + sums.T
