"""The use case: clicks on an image become a mask. Knows no HTTP and no JSON.

A mask depends on the request alone, not on which requests came before, and is the same to the bit (where the executor
runs clicks one by one; in batches the last bits of a float may differ): see `click_memo.py`.

With zoom-in, clicks after the first are answered on a crop of the photo around the object (`skipclick/zoom.py`). The
clicks determine which crop; it is encoded like a photo, ahead of the click where there is time, and cached beside the
photo's features.

Each project has its own head (`heads.py`); all heads share the backbone and therefore its features. Features are cached
as prepared for the head that used them last; for another head they are prepared again, which takes a small fraction of
the time of encoding the image.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from threading import BoundedSemaphore, Condition, Lock
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from backend.click_memo import ClickMemo
from backend.executor import DeviceExecutor, Priority
from backend.finetune.versions import Version
from backend.heads import Head, Heads, PredictorLike
from backend.images.decode import DecodedImage
from backend.images.loader import ImageSource
from backend.prompts import Box, ImageReference, SmartClick, Start
from skipclick.cache import ByteLru, CacheStats, SharedCache
from skipclick.features import ImageFeatures
from skipclick.masks import Box as View
from skipclick.masks import BoxMask
from skipclick.predictor import BOX_PROBABILITY, ClickRequest, Prediction, Predictor
from skipclick.prompts import Click
from skipclick.proposals import DEFAULT_RULE, Proposal, ProposalRule, propose
from skipclick.simulation import correcting_clicks
from skipclick.zoom import (
    ZoomPrediction,
    ZoomRequest,
    ZoomRule,
    ZoomState,
    likely_view,
    local_side,
    predict_zoomed,
    start_in_box,
    start_zoomed,
    whole_view,
    zoom_request,
)

_MAX_WARMING = 8
"""Images that wait to be warmed; more would push out of the cache what annotators work on."""

_MAX_PROPOSING = 8
"""Images for which proposals are being made or queued."""

_LONGEST_PAUSE = 5.0
"""Seconds that each part of making proposals waits while clicks are being answered: a busy team must not stop proposals
altogether."""

_PROPOSALS_BYTES = 32 << 20
"""Memory for finished proposals."""

_GPU_BATCH = 8
"""Clicks that a GPU runs together when making proposals; a CPU runs one at a time, so that an annotator's click never
waits for more than one."""

Cancelled = Callable[[], bool]
"""Whether nobody is waiting for the answer any more, for example because the client closed its connection."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class SizeMismatchError(ValueError):
    """The image fetched is not the one that the annotator sees."""


class OverloadedError(Exception):
    """Nothing is wrong with the request, but it cannot be answered now."""


class NoPlaceError(OverloadedError):
    """All threads that may wait for photos are busy."""


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """A mask; its score, the mean probability inside it (0 if empty); the version that made it; milliseconds by
    stage."""

    mask: BoxMask
    score: float
    version: str
    stages: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Proposals:
    """Masks on an image of `size` (H, W) that nobody clicked for, the best first, and the version that made them."""

    found: tuple[Proposal, ...]
    size: tuple[int, int]
    version: str

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, about."""
        return 1000 + sum(one.mask.nbytes for one in self.found)


@dataclass(frozen=True, eq=False)
class _Photo:
    """A photo being annotated, and the head that answers."""

    image: ImageReference
    name: str
    features: ImageFeatures
    head: Head


@dataclass(frozen=True, eq=False)
class _Seen:
    """A photo as it is now, and its features."""

    name: str
    """Of its content: a photo that replaces another has another name."""
    features: ImageFeatures
    is_fetched: bool
    """Whether the photo itself was fetched for this, rather than its features found in the cache."""

    @property
    def nbytes(self) -> int:
        return max(1, self.features.nbytes)


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
        zoom: ZoomRule | None = None,
        photo_bytes: int = 0,
        fetching: int = 1 << 16,
    ) -> None:
        """zoom: None answers all clicks on the whole photo. photo_bytes: memory for decoded photos, from which crops
        are cut; one that was evicted is fetched again. fetching: threads that may wait for photos at a time, fewer than
        there are, so that unresponsive sources leave some for photos that are cached."""
        self._heads = heads
        self._images = images
        self._executor = executor
        self._features = features
        self._memo: ClickMemo[Prediction | ZoomPrediction] = ClickMemo(memo_bytes)
        self._zoom = zoom
        self._photos: SharedCache[NDArray[np.uint8]] = SharedCache("photos", ByteLru(photo_bytes))
        self._looks: SharedCache[_Seen] = SharedCache(
            "looks", ByteLru(0)
        )  # keeps nothing: shares one look among concurrent requests
        self._waiting: defaultdict[Hashable, list[Cancelled]] = defaultdict(
            list
        )  # requests by the features they wait for
        self._warming: set[str] = set()
        self._fetching = BoundedSemaphore(fetching)
        self._fetching_again = BoundedSemaphore(max(1, fetching // 6))  # half of what is left beside `fetching`
        self._likely: dict[Hashable, Callable[[], object]] = {}  # encodes of crops to come, by object
        self._encoded: Counter[str] = Counter()
        self._lock = Lock()
        self._warmers = ThreadPoolExecutor(1, thread_name_prefix="warm")
        self._proposals: ByteLru[Proposals] = ByteLru(_PROPOSALS_BYTES)
        self._clicks_under_way = 0
        self._no_click = Condition()
        self._proposing: dict[Hashable, Future[Proposals]] = {}
        self._proposers = ThreadPoolExecutor(1, thread_name_prefix="propose")

    def annotate(
        self,
        image: ImageReference,
        clicks: Sequence[SmartClick],
        start: Start | None,
        size: tuple[int, int],
        is_cancelled: Cancelled = lambda: False,
        project: int | None = None,
    ) -> ObjectMask:
        """The object's mask after all clicks by the project's head, for an image that the annotator sees at `size`
        (H, W) in pixels.

        `start`, a mask, is the previous mask of the first click, which is preceded by a positive one inside the mask
        where it is negative. A box makes its inside likely, begins with a positive click at its centre, and holds the
        first mask. Raises
        `ImageError` if the image cannot be loaded, `SizeMismatchError` if it has another size, and `OverloadedError`
        if the device has no memory for it or the request was cancelled.
        """
        stages: dict[str, float] = {}
        place = self._images.place(image)
        points = tuple(Click(c.x, c.y, c.positive) for c in clicks)
        if isinstance(start, Box):
            points = (Click(*start.centre(size), positive=True), *points)
        elif start is not None:
            points = correcting_clicks(start.mask, points)
        if not points:
            raise ValueError("a mask needs at least one click or a box")
        with self._click_under_way(), _overloaded_if_cancelled(), self._wanted(place, is_cancelled):
            head = self._heads.of(project)
            seen = self._look(head, place, image, stages)
            if seen.features.image_size != size and not seen.is_fetched:
                seen = self._look(head, place, image, stages, doubt=True)
            features = self._prepared(head, place, seen.name, seen.features, stages)
        if features.image_size != size:
            raise SizeMismatchError(
                f"the image has {features.image_size[1]} x {features.image_size[0]} pixels, but the "
                f"annotator sees {size[1]} x {size[0]}: the task's address gives another file than the screen"
            )
        photo = _Photo(image, seen.name, features, head)
        with self._click_under_way(), _overloaded_if_cancelled(), _timed(stages, "click"):
            answer = self._answer(photo, points, start, stages, is_cancelled)
        stages["click"] -= stages.get("crop", 0.0)
        if isinstance(answer, ZoomPrediction):
            self._encode_ahead(photo, points, answer.state)
        return ObjectMask(answer.mask, answer.score, head.version, stages)

    def size_of(
        self, image: ImageReference, is_cancelled: Cancelled = lambda: False, project: int | None = None
    ) -> tuple[int, int]:
        """(H, W) in pixels of an image that somebody is waiting for; it is encoded unless it is cached.

        Raises `ImageError` or `OverloadedError`.
        """
        place = self._images.place(image)
        with _overloaded_if_cancelled(), self._wanted(place, is_cancelled):
            return self._look(self._heads.of(project), place, image, {}).features.image_size

    @property
    def version(self) -> str:
        """Name of the base's weights."""
        return self._heads.base.version

    def version_of(self, project: int | None) -> str:
        """Name of the weights that serve a project now."""
        return self._heads.of(project).version

    def promoted(self) -> dict[int, str]:
        """By project, the name of its fine-tuned weights in service."""
        return {project: version.name for project, version in self._heads.promoted().items()}

    def in_service(self) -> dict[int, Version]:
        """By project, its fine-tuned version in service."""
        return self._heads.promoted()

    def versions(self) -> list[str]:
        """Names of all available weights, the base's first."""
        return self._heads.names()

    def prepare(self, image: ImageReference, project: int | None = None) -> None:
        """Encode an image unless it is cached, after everything that somebody is waiting for. Raises `ImageError` or
        `OverloadedError`."""
        place = self._images.place(image)
        with _overloaded_if_cancelled():
            head = self._heads.of(project)
            seen = self._look(head, place, image, {})
            self._prepared(head, place, seen.name, seen.features, {})

    def warm(self, image: ImageReference, project: int | None = None) -> None:
        """Start to `prepare` an image in the background, unless it was seen recently, is already being prepared, or too
        many are waiting."""
        place, name = self._images.place(image), self._images.recent(image)
        is_known = name is not None and name in self._features
        with self._lock:
            is_under_way = place in self._warming or (place, False) in self._looks
            if is_known or is_under_way or len(self._warming) >= _MAX_WARMING:
                return
            self._warming.add(place)
        self._warmers.submit(self._warm, place, image, project)

    def can_propose(self, project: int | None) -> bool:
        """Whether a project's head knows what to propose."""
        return self._heads.of(project).accepted is not None

    def propose(
        self, image: ImageReference, project: int | None, timeout: float, rule: ProposalRule = DEFAULT_RULE
    ) -> Proposals | None:
        """Objects like those that the project accepted, found in the background at the lowest priority. None if the
        project's head does not know what to propose.

        Waits up to `timeout` seconds, then raises `OverloadedError`; the work continues, and the next request finds
        its result. Raises `ImageError` if the image cannot be loaded.
        """
        head, place = self._heads.of(project), self._images.place(image)
        if head.accepted is None:
            return None
        key = place, head.version, rule
        with self._lock:
            running = self._proposing.get(key)
            if running is None:
                if len(self._proposing) >= _MAX_PROPOSING:
                    raise OverloadedError("too many images wait for proposals")
                running = self._proposing[key] = self._proposers.submit(self._propose, key, head, place, image, rule)
        with _overloaded_if_cancelled():
            try:
                return running.result(timeout)
            except TimeoutError:
                if running.done():  # the work itself raised it
                    raise
                raise OverloadedError(f"no proposals within PREDICT_SECONDS={timeout:g}; ask again") from None

    def close(self) -> None:
        """Stop the background work; requests still running may fail."""
        self._warmers.shutdown(wait=False, cancel_futures=True)
        self._proposers.shutdown(wait=False, cancel_futures=True)
        self._executor.close()
        self._features.close()
        self._photos.close()
        self._looks.close()
        self._memo.close()
        self._heads.close()

    def forget(self) -> None:
        """Empty the caches of features, answers and photos; answers stay the same."""
        self._features.free()
        self._memo.free()
        self._photos.free()
        self._proposals.clear()

    def cache_stats(self) -> dict[str, CacheStats]:
        """Statistics by cache name."""
        photos = {} if self._zoom is None else self._photos.stats()
        return self._features.stats() | photos | self._memo.stats() | self._heads.stats()

    def feature_stats(self) -> dict[str, CacheStats]:
        """Statistics of the features' tiers alone."""
        return self._features.stats()

    def encodes(self) -> dict[str, int]:
        """Encodes since the start: photos, crops that a click waited for, and crops made ahead of a click."""
        with self._lock:
            return {kind: self._encoded[kind] for kind in ("photo", "crop", "crop ahead")}

    def check(self) -> None:
        """Raises `RuntimeError` if no thread serves the device's queue."""
        self._executor.check()

    def queue(self) -> dict[str, int]:
        """Length of the device's queue, by priority's name."""
        return self._executor.waiting()

    def _warm(self, place: str, image: ImageReference, project: int | None) -> None:
        try:
            self.prepare(image, project)
        except Exception as error:  # the next click on this image will report it; here there is only the log
            logger.warning("could not warm up the image of task %s: %s", image.task_id, error)
        finally:
            with self._lock:
                self._warming.discard(place)

    def _propose(self, key: Hashable, head: Head, place: str, image: ImageReference, rule: ProposalRule) -> Proposals:
        try:
            seen = self._look(head, place, image, {})
            name = seen.name, head.version, rule
            known = self._proposals.get(name)
            if known is not None:
                return known
            features = self._prepared(head, place, seen.name, seen.features, {})
            predictor = cast(Predictor, head.predictor).without_graphs()

            def run(work: Callable[[], T], /) -> T:
                with self._no_click:  # which may use the device more than once, and needs a core in between
                    self._no_click.wait_for(lambda: not self._clicks_under_way, _LONGEST_PAUSE)
                return self._on_device(lambda: Priority.PREFETCH, work)

            assert head.accepted is not None
            batch = _GPU_BATCH if predictor.device.type == "cuda" else 1
            found = propose(predictor, features, head.accepted, rule, batch=batch, run=run)
            proposals = Proposals(tuple(found), features.image_size, head.version)
            self._proposals.put(name, proposals)
            return proposals
        finally:
            with self._lock:
                del self._proposing[key]

    def _look(
        self, head: Head, place: str, image: ImageReference, stages: dict[str, float], doubt: bool = False
    ) -> _Seen:
        """The image as it is now, encoded if it is new, with what the head needs."""
        name = self._images.recent(image)
        if not doubt and name is not None and self._features.peek(name) is not None:
            return self._see(head, place, image, stages, doubt)
        try:
            with self._place(self._fetching):
                return self._looks.get_or_make((place, doubt), lambda: self._see(head, place, image, stages, doubt))
        except NoPlaceError:
            name = self._images.recent(image, unconfirmed=True)
            if name is None:
                raise
            features = self._features.find(name)
            if features is not None:
                return _Seen(name, features, is_fetched=True)  # the best that is known now
            with self._place(self._fetching_again):
                return self._looks.get_or_make((place, doubt), lambda: self._see(head, place, image, stages, doubt))

    def _see(self, head: Head, place: str, image: ImageReference, stages: dict[str, float], doubt: bool) -> _Seen:
        begin = time.perf_counter()
        with _overloaded_if_full():
            look = self._images.look(image, self._features.find, doubt)
        if look.asked:
            stages["fetch"] = (time.perf_counter() - begin) * 1000
        photo = look.photo
        if photo is None:
            assert look.kept is not None
            return _Seen(look.name, look.kept, is_fetched=False)
        try:
            if self._zoom is not None and photo.pixels.shape[:2] == photo.size:  # not decoded at a reduced size
                self._photos.replace(look.name, photo.pixels)
            make = partial(self._encode_photo, head, place, photo, stages)
            return _Seen(look.name, self._features.get_or_make(look.name, make), is_fetched=True)
        finally:
            photo.release()

    def _encode_photo(self, head: Head, place: str, photo: DecodedImage, stages: dict[str, float]) -> ImageFeatures:
        features = self._encode(head, place, photo.pixels, "photo", stages)
        return dataclasses.replace(features, image_size=photo.size)

    def _encode(
        self, head: Head, awaited: Hashable, pixels: NDArray[np.uint8], kind: str, stages: dict[str, float]
    ) -> ImageFeatures:
        with _timed(stages, "encode"):
            features = self._on_device(lambda: self._urgency(awaited), lambda: head.predictor.encode(pixels))
        with self._lock:
            self._encoded[kind] += 1
        return features

    def _prepared(
        self, head: Head, awaited: Hashable, key: Hashable, features: ImageFeatures, stages: dict[str, float]
    ) -> ImageFeatures:
        """Features prepared for a head. They replace those prepared for another one in the cache; requests that are
        using those keep them."""
        if features.head == head.predictor.head:
            return features
        with _timed(stages, "prepare"):
            prepared = self._on_device(lambda: self._urgency(awaited), lambda: head.predictor.prepare(features))
        self._features.replace(key, prepared)
        return prepared

    def _urgency(self, awaited: Hashable) -> Priority:
        """Of an encode: whether somebody is waiting for it now."""
        is_wanted = any(not is_cancelled() for is_cancelled in tuple(self._waiting.get(awaited, ())))
        return Priority.ENCODE if is_wanted else Priority.PREFETCH

    def _answer(
        self,
        photo: _Photo,
        clicks: tuple[Click, ...],
        start: Start | None,
        stages: dict[str, float],
        is_cancelled: Cancelled,
    ) -> Prediction | ZoomPrediction:
        """The answer after all clicks."""
        steps = _Steps(self, photo, start, stages, is_cancelled)
        return self._memo.answer((photo.name, photo.head.version, start), clicks, steps.answer)

    def _awaited_crop(
        self, photo: _Photo, stages: dict[str, float], is_cancelled: Cancelled, view: View
    ) -> ImageFeatures:
        with _timed(stages, "crop"), self._wanted((photo.name, view), is_cancelled):
            return self._crop(photo, view, "crop", {})

    def _crop(self, photo: _Photo, view: View, kind: str, stages: dict[str, float]) -> ImageFeatures:
        """Features of a crop of a photo, prepared for its head; encoded unless they are cached."""
        key = photo.name, view

        def make() -> ImageFeatures:
            with _overloaded_if_full():
                pixels = self._pixels(photo)
            top, left, bottom, right = view
            return self._encode(photo.head, key, pixels[top:bottom, left:right], kind, stages)

        return self._prepared(photo.head, key, key, self._features.get_or_make(key, make), stages)

    def _pixels(self, photo: _Photo) -> NDArray[np.uint8]:
        is_held = self._photos.peek(photo.name) is not None
        with nullcontext() if is_held else self._place(self._fetching, self._fetching_again):
            return self._photos.get_or_make(photo.name, lambda: self._images.pixels(photo.image, photo.name))

    @contextmanager
    def _place(self, *kinds: BoundedSemaphore) -> Iterator[None]:
        """Holds a place for a thread that waits for a photo, of the first kind that has one. Raises `NoPlaceError`."""
        places = next((kind for kind in kinds if kind.acquire(blocking=False)), None)
        if places is None:
            raise NoPlaceError(
                "too many requests are waiting for photos: a source is slow; try again, or raise THREADS"
            )
        try:
            yield
        finally:
            places.release()

    def _encode_ahead(self, photo: _Photo, clicks: tuple[Click, ...], state: ZoomState) -> None:
        """Start to encode the crop that the next click will probably need; it replaces one still queued for an earlier
        click on the object."""
        assert self._zoom is not None
        size = photo.features.image_size
        if local_side(state, clicks, size, self._zoom) is not None:
            return  # the next click is answered on a crop around itself
        view, subject = likely_view(state, clicks, size, self._zoom), (photo.name, clicks[0])
        with self._lock:
            is_queued = self._likely.pop(subject, None) is not None
            if view == whole_view(size) or (photo.name, view) in self._features or len(self._likely) >= _MAX_WARMING:
                return
            self._likely[subject] = partial(self._crop, photo, view, "crop ahead", {})
        if not is_queued:
            self._warmers.submit(self._run_ahead, subject)

    def _run_ahead(self, subject: Hashable) -> None:
        with self._lock:
            encode = self._likely.pop(subject, None)
        try:
            if encode is not None:
                encode()
        except Exception as error:  # the next click will report it
            logger.warning("could not encode a crop ahead: %s", error)

    def _on_device(self, urgency: Callable[[], Priority | None], work: Callable[[], T]) -> T:
        return self._executor.submit(urgency, lambda: self._relieved(work)).result()

    def _relieved(self, work: Callable[[], T]) -> T:
        """`work()`; if the device is out of memory, once more with the caches emptied. Runs in the device's thread."""
        try:
            return work()
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            logger.warning("out of memory, emptying the caches: %s", error)
        self.forget()
        gc.collect()  # the error's traceback held the unfinished tensors
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
    def _click_under_way(self) -> Iterator[None]:
        """While this holds, no part of a proposal is started."""
        with self._no_click:
            self._clicks_under_way += 1
        try:
            yield
        finally:
            with self._no_click:
                self._clicks_under_way -= 1
                self._no_click.notify_all()

    @contextmanager
    def _wanted(self, awaited: Hashable, is_cancelled: Cancelled) -> Iterator[None]:
        """While this holds, encoding `awaited` (an image by its place, or a crop) has priority over prefetches, even if
        a prefetch started it."""
        with self._lock:
            self._waiting[awaited].append(is_cancelled)
        try:
            yield
        finally:
            with self._lock:
                self._waiting[awaited].remove(is_cancelled)
                if not self._waiting[awaited]:
                    del self._waiting[awaited]


@dataclass(frozen=True, eq=False)
class _Steps:
    """The clicks on one object, answered one after the other: each starts from the state that the one before left."""

    annotator: Annotator
    photo: _Photo
    start: Start | None
    stages: dict[str, float]
    is_cancelled: Cancelled

    def answer(
        self, clicks: tuple[Click, ...], before: Prediction | ZoomPrediction | None
    ) -> Prediction | ZoomPrediction:
        """The answer to `clicks`, given the answer to all but the last of them; None at the first click."""
        request = self._first_request(clicks) if before is None else self._request(clicks, before.state)
        run = _Answering(self.annotator, self.photo.head.predictor)
        return self.annotator._executor.submit_together(self._urgency, run, request).result()

    def _first_request(self, clicks: tuple[Click, ...]) -> ClickRequest | ZoomRequest:
        """The request for the first click, which starts from what is known of the object before it."""
        if self.start is None:
            return self._request(clicks, None)
        is_box = isinstance(self.start, Box)
        area = self.start.area(self.photo.features.image_size) if isinstance(self.start, Box) else self.start.mask
        state = self.annotator._on_device(self._urgency, lambda: self._start_state(area, is_box))
        return self._request(clicks, state, within=area if is_box else None)

    def _start_state(self, area: NDArray[np.bool_], is_box: bool) -> torch.Tensor | ZoomState:
        predictor = self.photo.head.predictor
        if self.annotator._zoom is None:
            return predictor.start_state(area, BOX_PROBABILITY if is_box else 1.0)
        start = start_in_box if is_box else start_zoomed
        return start(cast(Predictor, predictor), area)

    def _request(
        self,
        clicks: tuple[Click, ...],
        state: torch.Tensor | ZoomState | None,
        within: NDArray[np.bool_] | None = None,
    ) -> ClickRequest | ZoomRequest:
        features, zoom = self.photo.features, self.annotator._zoom
        if zoom is None:
            assert not isinstance(state, ZoomState)
            return ClickRequest(features, clicks, state, within)
        assert not isinstance(state, torch.Tensor)
        return zoom_request(features, clicks, state, self._crop, zoom, within)

    def _crop(self, view: View) -> ImageFeatures:
        return self.annotator._awaited_crop(self.photo, self.stages, self.is_cancelled, view)

    def _urgency(self) -> Priority | None:
        return None if self.is_cancelled() else Priority.CLICK


@dataclass(frozen=True)
class _Answering:
    """Answers a batch of requests to one head. Instances for the same head are equal, which tells the executor what may
    share a batch."""

    annotator: Annotator
    predictor: PredictorLike

    def __call__(self, requests: Sequence[ClickRequest | ZoomRequest]) -> Sequence[Prediction | ZoomPrediction]:
        return self.annotator._relieved(lambda: self._answers(requests))

    def _answers(self, requests: Sequence[ClickRequest | ZoomRequest]) -> Sequence[Prediction | ZoomPrediction]:
        if isinstance(requests[0], ZoomRequest):  # so all are
            return predict_zoomed(cast(Predictor, self.predictor), cast(Sequence[ZoomRequest], requests))
        return self.predictor.predict(cast(Sequence[ClickRequest], requests))


def _is_out_of_memory(error: Exception) -> bool:
    """torch has an exception type for a GPU's memory; for the host's it raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


@contextmanager
def _overloaded_if_cancelled() -> Iterator[None]:
    try:
        yield
    except CancelledError:
        raise OverloadedError("the request was cancelled before its turn came, or the server is stopping") from None


@contextmanager
def _overloaded_if_full() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise OverloadedError(
            "there is not enough memory for this photo now; try again, or lower IMAGE_MAX_PIXELS or THREADS"
        ) from None


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    finally:
        stages[name] = stages.get(name, 0.0) + (time.perf_counter() - begin) * 1000
