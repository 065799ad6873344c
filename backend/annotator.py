"""The use case: clicks on an image become a mask. Knows no HTTP and no JSON.

The previous mask of click t, which the network sees beside the clicks, is the memo of the same image, model
and clicks 1..t-1. When it is gone, the clicks are replayed from the longest prefix that is still known. So
a result depends on the request alone, not on which requests came before, and is the same to the bit.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.executor import DeviceExecutor, Priority
from backend.images import ImageSource
from backend.protocol import Box, ImageReference, SmartClick
from skipclick.features import ByteLru, CacheStats, FeatureCache
from skipclick.predictor import MASK_THRESHOLD
from skipclick.prompts import Click

_MAX_WARMING = 8
"""Images that wait to be warmed; more would push out of the cache what annotators work on."""

logger = logging.getLogger(__name__)


class HasSize(Protocol):
    """Features of an image: any type that tells its bytes and the image's (H, W)."""

    @property
    def nbytes(self) -> int: ...

    @property
    def image_size(self) -> tuple[int, int]: ...


F = TypeVar("F", bound=HasSize)


class PredictorLike(Protocol[F]):
    """What the annotator asks of `skipclick.Predictor`."""

    def encode(self, image: NDArray[np.uint8]) -> F: ...

    def click(
        self, features: F, clicks: Sequence[Click], previous: NDArray[np.float32] | None
    ) -> NDArray[np.float32]: ...


class SizeMismatchError(ValueError):
    """The image fetched is not the one that the annotator sees."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """A mask, bool (H, W); its score, the mean probability inside it (0 if empty); and milliseconds by
    stage."""

    mask: NDArray[np.bool_]
    score: float
    stages: Mapping[str, float]


class Annotator(Generic[F]):
    """Answers clicks from any number of threads; the device works in `executor`'s thread alone."""

    def __init__(
        self,
        predictor: PredictorLike[F],
        images: ImageSource,
        executor: DeviceExecutor,
        *,
        version: str,
        feature_bytes: int,
        memo_bytes: int,
    ) -> None:
        self.version = version
        self._predictor = predictor
        self._images = images
        self._executor = executor
        self._features: FeatureCache[F] = FeatureCache(feature_bytes)
        self._memo: ByteLru[NDArray[np.float32]] = ByteLru(memo_bytes)
        self._waiting: Counter[str] = Counter()  # requests that wait for an image, by key
        self._warming: set[str] = set()
        self._lock = Lock()
        self._warmers = ThreadPoolExecutor(1, thread_name_prefix="warm")

    def annotate(
        self, image: ImageReference, clicks: Sequence[SmartClick], box: Box | None, size: tuple[int, int]
    ) -> Annotation:
        """The object's mask after all clicks, for an image that the annotator sees at `size` (H, W) in
        pixels.

        A box starts from its area as the previous mask and a positive click at its centre, then come the
        clicks. Raises `ImageError` if the image cannot be had and `SizeMismatchError` if it has another
        size.
        """
        stages: dict[str, float] = {}
        key = self._images.key(image)
        with self._wanted(key):
            features = self._features.get_or_encode(key, lambda: self._encode(key, image, stages))
        if features.image_size != size:
            raise SizeMismatchError(
                f"the image has {features.image_size[1]} x {features.image_size[0]} pixels, but the "
                f"annotator sees {size[1]} x {size[0]}: the task's address gives another file than the screen"
            )
        points = ([_centre(box, size)] if box else []) + [Click(c.x, c.y, c.positive) for c in clicks]
        with _timed(stages, "click"):
            work = self._executor.submit(
                lambda: Priority.CLICK, lambda: self._probability(key, features, tuple(points), box)
            )
            probability = work.result()
        with _timed(stages, "mask"):
            mask = probability > MASK_THRESHOLD
            score = float(probability[mask].mean()) if mask.any() else 0.0
        return Annotation(mask, score, stages)

    def warm(self, image: ImageReference) -> None:
        """Begin to encode an image in the background, unless it is known, under way, or too many are
        waiting."""
        key = self._images.key(image)
        with self._lock:
            if key in self._features or key in self._warming or len(self._warming) >= _MAX_WARMING:
                return
            self._warming.add(key)
        self._warmers.submit(self._warm, key, image)

    def close(self) -> None:
        """Stop the background work; requests still running may fail."""
        self._warmers.shutdown(wait=False, cancel_futures=True)
        self._executor.close()

    def cache_stats(self) -> dict[str, CacheStats]:
        """Statistics by cache name."""
        return {"features": self._features.stats(), "memo": self._memo.stats()}

    def _warm(self, key: str, image: ImageReference) -> None:
        try:
            self._features.get_or_encode(key, lambda: self._encode(key, image, {}))
        except Exception as error:  # whoever clicks on this image will be told; here only the log can be
            logger.warning("could not warm up the image of task %s: %s", image.task_id, error)
        finally:
            with self._lock:
                self._warming.discard(key)

    def _encode(self, key: str, image: ImageReference, stages: dict[str, float]) -> F:
        """Fetch and decode in this thread, encode in the device's."""
        with _timed(stages, "fetch"):
            pixels = self._images.load(image)
        with _timed(stages, "encode"):
            return self._executor.submit(
                lambda: Priority.ENCODE if self._waiting[key] else Priority.PREFETCH,
                lambda: self._predictor.encode(pixels),
            ).result()

    def _probability(self, key: str, features: F, clicks: tuple[Click, ...], box: Box | None) -> NDArray[np.float32]:
        """Probability (H, W) after all clicks, from the longest prefix known. Runs in the device's thread."""

        def memo_key(num_clicks: int) -> tuple[Any, ...]:
            return key, self.version, box, clicks[:num_clicks]

        num_known = len(clicks)
        previous = self._memo.get(memo_key(num_known))
        while previous is None and num_known > 1:
            num_known -= 1
            previous = self._memo.get(memo_key(num_known))
        if previous is None:
            num_known, previous = 0, _area(box, features.image_size) if box else None
        for num_clicks in range(num_known + 1, len(clicks) + 1):
            previous = self._predictor.click(features, clicks[:num_clicks], previous)
            self._memo.put(memo_key(num_clicks), previous)
        if previous is None:
            raise ValueError("a mask needs at least one click or a box")
        return previous

    @contextmanager
    def _wanted(self, key: str) -> Iterator[None]:
        """While this holds, encoding the image is more urgent than a prefetch, even if a prefetch began
        it."""
        with self._lock:
            self._waiting[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting[key] -= 1
                if not self._waiting[key]:
                    del self._waiting[key]


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


def _area(box: Box, size: tuple[int, int]) -> NDArray[np.float32]:
    """The box as a probability map (H, W): 1 at pixels whose centre lies in it, 0 elsewhere."""
    cos, sin = _rotation(box)
    y, x = np.ogrid[0.5 : size[0], 0.5 : size[1]]
    along = (x - box.x) * cos + (y - box.y) * sin  # (H, W), coordinates in the box's own frame
    across = (y - box.y) * cos - (x - box.x) * sin
    inside = (along >= 0) & (along <= box.width) & (across >= 0) & (across <= box.height)
    area: NDArray[np.float32] = inside.astype(np.float32)
    return area
