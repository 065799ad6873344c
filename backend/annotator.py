"""The use case: clicks on an image become a mask. Knows no HTTP and no JSON.

The previous mask of click t, which the network sees beside the clicks, is the memo of the same image, head
and clicks 1..t-1. When it is gone, the clicks are replayed from the longest prefix that is still known. So
a result depends on the request alone, not on which requests came before, and is the same to the bit (where the
executor runs clicks one by one; in batches the last bits of a float may differ).

Each project is answered by its head (`heads.py`); all share the backbone, and so what it saw of an image. Features are
kept with what was prepared for the head that worked with them last; for another one they are prepared anew, in a small
part of the time that looking at the image takes.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from backend.executor import DeviceExecutor, Priority
from backend.heads import Head, Heads, PredictorLike
from backend.images.decode import Photo
from backend.images.loader import ImageSource
from backend.prompts import Box, ImageReference, SmartClick
from skipclick.cache import ByteLru, CacheStats, SharedCache
from skipclick.features import ImageFeatures
from skipclick.masks import BoxMask
from skipclick.predictor import ClickRequest, Prediction
from skipclick.prompts import Click

_MAX_WARMING = 8
"""Images that wait to be warmed; more would push out of the cache what annotators work on."""

GivenUp = Callable[[], bool]
"""Whether nobody waits for the answer any more, such as after the client closed its connection."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class SizeMismatchError(ValueError):
    """The image fetched is not the one that the annotator sees."""


class OverloadedError(Exception):
    """Nothing is wrong with the request, but it cannot be answered now."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """A mask; its score, the mean probability inside it (0 if empty); who made it; and milliseconds by stage."""

    mask: BoxMask
    score: float
    version: str
    stages: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is known of a photo as it is now."""

    name: str
    """Of its content: a photo that takes another's place has another name."""
    features: ImageFeatures
    is_fetched: bool
    """Whether the photo itself was fetched for this, and not only what was kept of it."""

    @property
    def nbytes(self) -> int:
        return max(1, self.features.nbytes)


@dataclass(frozen=True, eq=False)
class _Memo:
    """An answer that knows its size."""

    prediction: Prediction

    @property
    def nbytes(self) -> int:
        return self.prediction.state.nbytes + self.prediction.mask.nbytes


class Annotator:
    """Answers clicks from any number of threads; the device works in `executor`'s threads alone."""

    def __init__(
        self,
        heads: Heads,
        images: ImageSource,
        executor: DeviceExecutor,
        *,
        features: SharedCache[ImageFeatures],
        memo_bytes: int,
    ) -> None:
        self._heads = heads
        self._images = images
        self._executor = executor
        self._features = features
        self._memo: SharedCache[_Memo] = SharedCache("memo", ByteLru(memo_bytes))
        self._looks: SharedCache[_Seen] = SharedCache("looks", ByteLru(0))  # keeps nothing: one look for all who ask
        self._waiting: defaultdict[str, list[GivenUp]] = defaultdict(list)  # requests that wait for an image, by place
        self._warming: set[str] = set()
        self._lock = Lock()
        self._warmers = ThreadPoolExecutor(1, thread_name_prefix="warm")

    def annotate(
        self,
        image: ImageReference,
        clicks: Sequence[SmartClick],
        box: Box | None,
        size: tuple[int, int],
        given_up: GivenUp = lambda: False,
        project: int | None = None,
    ) -> Annotation:
        """The object's mask after all clicks, for an image that the annotator sees at `size` (H, W) in
        pixels, by the project's head.

        A box starts from its area as the previous mask and a positive click at its centre, then come the
        clicks. Raises `ImageError` if the image cannot be had, `SizeMismatchError` if it has another size, and
        `OverloadedError` if the device has no memory for it or the request was given up.
        """
        stages: dict[str, float] = {}
        place = self._images.place(image)
        points = tuple(([_centre(box, size)] if box else []) + [Click(c.x, c.y, c.positive) for c in clicks])
        if not points:
            raise ValueError("a mask needs at least one click or a box")
        with _overloaded_if_cancelled(), self._wanted(place, given_up):
            head = self._heads.of(project)
            seen = self._look(head, place, image, stages)
            if seen.features.image_size != size and not seen.is_fetched:
                seen = self._look(head, place, image, stages, doubt=True)
            features = self._prepared(head, place, seen, stages)
        if features.image_size != size:
            raise SizeMismatchError(
                f"the image has {features.image_size[1]} x {features.image_size[0]} pixels, but the "
                f"annotator sees {size[1]} x {size[0]}: the task's address gives another file than the screen"
            )
        with _overloaded_if_cancelled(), _timed(stages, "click"):
            answer = self._answer(head, seen.name, features, points, box, given_up)
        return Annotation(answer.mask, answer.score, head.version, stages)

    @property
    def version(self) -> str:
        """Name of the base's weights."""
        return self._heads.base.version

    def version_of(self, project: int | None) -> str:
        """Name of the weights that answer a project now."""
        return self._heads.of(project).version

    def versions(self) -> list[str]:
        """Names of all weights at hand, the base's first."""
        return self._heads.names()

    def prepare(self, image: ImageReference, project: int | None = None) -> None:
        """Encode an image unless it is known, after everything that somebody waits for. Raises `ImageError` or
        `OverloadedError`."""
        place = self._images.place(image)
        with _overloaded_if_cancelled():
            head = self._heads.of(project)
            self._prepared(head, place, self._look(head, place, image, {}), {})

    def warm(self, image: ImageReference, project: int | None = None) -> None:
        """Begin to `prepare` an image in the background, unless it was seen a short time ago, is under way, or too
        many are waiting."""
        place, name = self._images.place(image), self._images.recent(image)
        is_known = name is not None and name in self._features
        with self._lock:
            is_under_way = place in self._warming or (place, False) in self._looks
            if is_known or is_under_way or len(self._warming) >= _MAX_WARMING:
                return
            self._warming.add(place)
        self._warmers.submit(self._warm, place, image, project)

    def close(self) -> None:
        """Stop the background work; requests still running may fail."""
        self._warmers.shutdown(wait=False, cancel_futures=True)
        self._executor.close()
        self._features.close()
        self._looks.close()
        self._memo.close()
        self._heads.close()

    def forget(self) -> None:
        """Let go of all features and memos on the device; answers stay the same."""
        self._features.free()
        self._memo.free()

    def cache_stats(self) -> dict[str, CacheStats]:
        """Statistics by cache name."""
        return self._features.stats() | self._memo.stats() | self._heads.stats()

    def feature_stats(self) -> dict[str, CacheStats]:
        """Statistics of the features' tiers alone."""
        return self._features.stats()

    def queue(self) -> dict[str, int]:
        """How much waits for the device, by priority's name."""
        return self._executor.waiting()

    def _warm(self, place: str, image: ImageReference, project: int | None) -> None:
        try:
            self.prepare(image, project)
        except Exception as error:  # whoever clicks on this image will be told; here only the log can be
            logger.warning("could not warm up the image of task %s: %s", image.task_id, error)
        finally:
            with self._lock:
                self._warming.discard(place)

    def _look(
        self, head: Head, place: str, image: ImageReference, stages: dict[str, float], doubt: bool = False
    ) -> _Seen:
        """What is known of the image as it is now; encoded if that is new, with what a head needs of it."""
        return self._looks.get_or_make((place, doubt), lambda: self._see(head, place, image, stages, doubt))

    def _see(self, head: Head, place: str, image: ImageReference, stages: dict[str, float], doubt: bool) -> _Seen:
        begin = time.perf_counter()
        try:
            look = self._images.look(image, self._features.find, doubt)
        except MemoryError:
            raise OverloadedError(
                "there is no memory for this photo now; try again, or lower IMAGE_MAX_PIXELS or THREADS"
            ) from None
        if look.asked:
            stages["fetch"] = (time.perf_counter() - begin) * 1000
        photo = look.photo
        if photo is None:
            assert look.kept is not None
            return _Seen(look.name, look.kept, is_fetched=False)
        try:
            make = partial(self._encode, head, place, photo, stages)
            return _Seen(look.name, self._features.get_or_make(look.name, make), is_fetched=True)
        finally:
            photo.release()

    def _encode(self, head: Head, place: str, photo: Photo, stages: dict[str, float]) -> ImageFeatures:
        with _timed(stages, "encode"):
            features = self._on_device(lambda: self._urgency(place), lambda: head.predictor.encode(photo.pixels))
        return dataclasses.replace(features, image_size=photo.size)

    def _prepared(self, head: Head, place: str, seen: _Seen, stages: dict[str, float]) -> ImageFeatures:
        """An image's features, prepared for a head. They take the place of those for another one: its requests under
        way hold theirs."""
        if seen.features.head == head.predictor.head:
            return seen.features
        with _timed(stages, "prepare"):
            features = self._on_device(lambda: self._urgency(place), lambda: head.predictor.prepare(seen.features))
        self._features.replace(seen.name, features)
        return features

    def _urgency(self, place: str) -> Priority:
        """Of the first look at an image: whether somebody waits for it now."""
        is_wanted = any(not given_up() for given_up in tuple(self._waiting.get(place, ())))
        return Priority.ENCODE if is_wanted else Priority.PREFETCH

    def _answer(
        self,
        head: Head,
        name: str,
        features: ImageFeatures,
        clicks: tuple[Click, ...],
        box: Box | None,
        given_up: GivenUp,
    ) -> Prediction:
        """The answer after all clicks, from the longest shorter history that is known."""

        def urgency() -> Priority | None:
            return None if given_up() else Priority.CLICK

        def make(num_clicks: int, state: torch.Tensor | None) -> _Memo:
            request = ClickRequest(features, clicks[:num_clicks], state)
            return _Memo(self._executor.submit_together(urgency, _Answering(self, head.predictor), request).result())

        def memo_key(num_clicks: int) -> tuple[object, ...]:
            return name, head.version, box, clicks[:num_clicks]

        begun = ((n, self._memo.peek(memo_key(n))) for n in range(len(clicks) - 1, 0, -1))
        num_known, known = next((found for found in begun if found[1] is not None), (0, None))
        if known is not None:
            state: torch.Tensor | None = known.prediction.state
        elif box is not None:
            area = _area(box, features.image_size)
            state = self._on_device(urgency, lambda: head.predictor.start_state(area))
        else:
            state = None
        for num_clicks in range(num_known + 1, len(clicks) + 1):
            known = self._memo.get_or_make(memo_key(num_clicks), partial(make, num_clicks, state))
            state = known.prediction.state
        assert known is not None
        return known.prediction

    def _on_device(self, urgency: Callable[[], Priority | None], work: Callable[[], T]) -> T:
        return self._executor.submit(urgency, lambda: self._relieved(work)).result()

    def _relieved(self, work: Callable[[], T]) -> T:
        """`work()`; where the device's memory is full, once more with the caches emptied. Runs in its thread."""
        try:
            return work()
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            logger.warning("out of memory, emptying the caches: %s", error)
        self.forget()
        gc.collect()  # the error's traceback held what was half made
        torch.cuda.empty_cache()
        try:
            return work()
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            raise OverloadedError(
                "the device has no memory for this image; try again, or lower FEATURE_CACHE_BYTES, MEMO_CACHE_BYTES or "
                "RESOLUTION"
            ) from None

    @contextmanager
    def _wanted(self, place: str, given_up: GivenUp) -> Iterator[None]:
        """While this holds, encoding the image is more urgent than a prefetch, even if a prefetch began
        it."""
        with self._lock:
            self._waiting[place].append(given_up)
        try:
            yield
        finally:
            with self._lock:
                self._waiting[place].remove(given_up)
                if not self._waiting[place]:
                    del self._waiting[place]


@dataclass(frozen=True)
class _Answering:
    """Answers a batch by one head. Equal for all requests to that head, by which the executor knows what may share a
    batch."""

    annotator: Annotator
    predictor: PredictorLike

    def __call__(self, requests: Sequence[ClickRequest]) -> Sequence[Prediction]:
        return self.annotator._relieved(lambda: self.predictor.predict(requests))


def _is_out_of_memory(error: Exception) -> bool:
    """torch has a type for a GPU's memory; of the host's it says so in a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


@contextmanager
def _overloaded_if_cancelled() -> Iterator[None]:
    try:
        yield
    except CancelledError:
        raise OverloadedError("the request was given up before its turn came, or the server is stopping") from None


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    finally:
        stages[name] = (time.perf_counter() - begin) * 1000


def _rotation(box: Box) -> tuple[float, float]:
    angle = math.radians(box.rotation)
    return math.cos(angle), math.sin(angle)


def _centre(box: Box, size: tuple[int, int]) -> Click:
    """A positive click at the pixel under the box's centre, or the nearest one of the image."""
    cos, sin = _rotation(box)
    x = box.x + (box.width * cos - box.height * sin) / 2
    y = box.y + (box.width * sin + box.height * cos) / 2
    return Click(min(max(int(x), 0), size[1] - 1), min(max(int(y), 0), size[0] - 1), positive=True)


def _area(box: Box, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The box as a mask, bool (H, W): pixels whose centre lies in it."""
    cos, sin = _rotation(box)
    y, x = np.ogrid[0.5 : size[0], 0.5 : size[1]]
    along = (x - box.x) * cos + (y - box.y) * sin  # (H, W), coordinates in the box's own frame
    across = (y - box.y) * cos - (x - box.x) * sin
    inside: NDArray[np.bool_] = (along >= 0) & (along <= box.width) & (across >= 0) & (across <= box.height)
    return inside
