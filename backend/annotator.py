"""The use case: clicks on an image become a mask. Knows no HTTP and no JSON.

A mask depends on the request alone, not on which requests came before, and is the same to the bit (where the executor
runs clicks one by one; in batches the last bits of a float may differ): see `click_memo.py`.

With zoom-in the clicks after the first are answered on a crop of the photo around the object (`skipclick/zoom.py`).
Which crop follows from the clicks; it is encoded like a photo, ahead of the click where there is time, and kept beside
the photo's features.

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
from backend.images.decode import Photo as DecodedPhoto
from backend.images.loader import ImageSource
from backend.prompts import Box, ImageReference, SmartClick, Start, StartMask
from skipclick.cache import ByteLru, CacheStats, SharedCache
from skipclick.features import ImageFeatures
from skipclick.masks import Box as View
from skipclick.masks import BoxMask
from skipclick.predictor import ClickRequest, Prediction, Predictor
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
    whole_view,
    zoom_request,
)

_MAX_WARMING = 8
"""Images that wait to be warmed; more would push out of the cache what annotators work on."""

_MAX_PROPOSING = 8
"""Images on which is looked for proposals, or that wait for it."""

_LONGEST_PAUSE = 5.0
"""Seconds that a part of a proposal waits while clicks are under way: a busy team must not end proposals for good."""

_PROPOSALS_BYTES = 32 << 20
"""Memory for proposals that were made."""

_GPU_BATCH = 8
"""Clicks of one photo's proposals that a GPU runs together; a processor runs one, so that a click waits for one."""

GivenUp = Callable[[], bool]
"""Whether nobody waits for the answer any more, such as after the client closed its connection."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class SizeMismatchError(ValueError):
    """The image fetched is not the one that the annotator sees."""


class OverloadedError(Exception):
    """Nothing is wrong with the request, but it cannot be answered now."""


class NoPlaceError(OverloadedError):
    """All threads that may wait for photos do."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """A mask; its score, the mean probability inside it (0 if empty); who made it; and milliseconds by stage."""

    mask: BoxMask
    score: float
    version: str
    stages: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Proposals:
    """Masks on an image of `size` (H, W) that nobody clicked for, the best first, and who made them."""

    found: tuple[Proposal, ...]
    size: tuple[int, int]
    version: str

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, about."""
        return 1000 + sum(one.mask.nbytes for one in self.found)


@dataclass(frozen=True, eq=False)
class _Photo:
    """A photo that is clicked on, and the head that answers."""

    image: ImageReference
    name: str
    features: ImageFeatures
    head: Head


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
        """zoom: None answers all clicks on the whole photo. photo_bytes: memory for photos as pixels, of which crops
        are made; one that is not there any more is fetched again. fetching: threads that may wait for photos at a time,
        fewer than there are, so that hanging sources leave some for photos that are known."""
        self._heads = heads
        self._images = images
        self._executor = executor
        self._features = features
        self._memo: ClickMemo[Prediction | ZoomPrediction] = ClickMemo(memo_bytes)
        self._zoom = zoom
        self._photos: SharedCache[NDArray[np.uint8]] = SharedCache("photos", ByteLru(photo_bytes))
        self._looks: SharedCache[_Seen] = SharedCache("looks", ByteLru(0))  # keeps nothing: one look for all who ask
        self._waiting: defaultdict[Hashable, list[GivenUp]] = defaultdict(
            list
        )  # requests by the features they wait for
        self._warming: set[str] = set()
        self._fetching = BoundedSemaphore(fetching)
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
        given_up: GivenUp = lambda: False,
        project: int | None = None,
    ) -> Annotation:
        """The object's mask after all clicks, for an image that the annotator sees at `size` (H, W) in
        pixels, by the project's head.

        What the object begins with, a mask or the area of a box, is the previous mask of the first click. A box also
        begins with a positive click at its centre, a mask whose first click is negative with one inside it. Raises
        `ImageError` if the image cannot be had, `SizeMismatchError` if it has another size, and `OverloadedError` if
        the device has no memory for it or the request was given up.
        """
        stages: dict[str, float] = {}
        place = self._images.place(image)
        points = tuple(Click(c.x, c.y, c.positive) for c in clicks)
        if isinstance(start, Box):
            points = (_centre(start, size), *points)
        elif start is not None:
            points = correcting_clicks(start.mask, points)
        if not points:
            raise ValueError("a mask needs at least one click or a box")
        with self._click_under_way(), _overloaded_if_cancelled(), self._wanted(place, given_up):
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
            answer = self._answer(photo, points, start, stages, given_up)
        stages["click"] -= stages.get("crop", 0.0)
        if isinstance(answer, ZoomPrediction):
            self._encode_ahead(photo, points, answer.state)
        return Annotation(answer.mask, answer.score, head.version, stages)

    def size_of(
        self, image: ImageReference, given_up: GivenUp = lambda: False, project: int | None = None
    ) -> tuple[int, int]:
        """(H, W) in pixels of an image that somebody waits for, which is encoded unless it is known.

        Raises `ImageError` or `OverloadedError`.
        """
        place = self._images.place(image)
        with _overloaded_if_cancelled(), self._wanted(place, given_up):
            return self._look(self._heads.of(project), place, image, {}).features.image_size

    @property
    def version(self) -> str:
        """Name of the base's weights."""
        return self._heads.base.version

    def version_of(self, project: int | None) -> str:
        """Name of the weights that answer a project now."""
        return self._heads.of(project).version

    def promoted(self) -> dict[int, str]:
        """By project the name of the weights that it has learnt and that are in service."""
        return {project: version.name for project, version in self._heads.promoted().items()}

    def in_service(self) -> dict[int, Version]:
        """By project the version that it has learnt and that is in service."""
        return self._heads.promoted()

    def versions(self) -> list[str]:
        """Names of all weights at hand, the base's first."""
        return self._heads.names()

    def prepare(self, image: ImageReference, project: int | None = None) -> None:
        """Encode an image unless it is known, after everything that somebody waits for. Raises `ImageError` or
        `OverloadedError`."""
        place = self._images.place(image)
        with _overloaded_if_cancelled():
            head = self._heads.of(project)
            seen = self._look(head, place, image, {})
            self._prepared(head, place, seen.name, seen.features, {})

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

    def can_propose(self, project: int | None) -> bool:
        """Whether a project's head knows what to propose."""
        return self._heads.of(project).accepted is not None

    def propose(
        self, image: ImageReference, project: int | None, timeout: float, rule: ProposalRule = DEFAULT_RULE
    ) -> Proposals | None:
        """Objects like those that the project accepted, found in the background, after everything that somebody waits
        for on the device. None if the project's head does not know what to propose.

        Waits for so many seconds, then raises `OverloadedError`; the work goes on and is there for who asks again.
        Raises `ImageError` if the image cannot be had.
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
                if running.done():  # it was a time limit of the work itself
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
        """Let go of all features, memos and photos; answers stay the same."""
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
        """How much was encoded since the start: photos, and crops that a click waited for or that were made ahead."""
        with self._lock:
            return {kind: self._encoded[kind] for kind in ("photo", "crop", "crop ahead")}

    def check(self) -> None:
        """Raises `RuntimeError` if nothing works off what waits for the device."""
        self._executor.check()

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
                with self._no_click:  # which may come to the device more than once, and needs a core in between
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
        """What is known of the image as it is now; encoded if that is new, with what a head needs of it."""
        name = self._images.recent(image)
        if not doubt and name is not None and self._features.peek(name) is not None:
            return self._see(head, place, image, stages, doubt)
        try:
            with self._fetching_place():
                return self._looks.get_or_make((place, doubt), lambda: self._see(head, place, image, stages, doubt))
        except NoPlaceError:
            name = self._images.recent(image, unconfirmed=True)
            features = self._features.find(name) if name is not None else None
            if name is None or features is None:
                raise
            return _Seen(name, features, is_fetched=True)  # as far as can be known now

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

    def _encode_photo(self, head: Head, place: str, photo: DecodedPhoto, stages: dict[str, float]) -> ImageFeatures:
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
        """Features prepared for a head. They take the place of those for another one: its requests under way hold
        theirs."""
        if features.head == head.predictor.head:
            return features
        with _timed(stages, "prepare"):
            prepared = self._on_device(lambda: self._urgency(awaited), lambda: head.predictor.prepare(features))
        self._features.replace(key, prepared)
        return prepared

    def _urgency(self, awaited: Hashable) -> Priority:
        """Of an encode: whether somebody waits for it now."""
        is_wanted = any(not given_up() for given_up in tuple(self._waiting.get(awaited, ())))
        return Priority.ENCODE if is_wanted else Priority.PREFETCH

    def _answer(
        self,
        photo: _Photo,
        clicks: tuple[Click, ...],
        start: Start | None,
        stages: dict[str, float],
        given_up: GivenUp,
    ) -> Prediction | ZoomPrediction:
        """The answer after all clicks."""
        head = photo.head

        def urgency() -> Priority | None:
            return None if given_up() else Priority.CLICK

        def make(begun: tuple[Click, ...], before: Prediction | ZoomPrediction | None) -> Prediction | ZoomPrediction:
            state = None if before is None else before.state
            if state is None and start is not None:
                area = start.mask if isinstance(start, StartMask) else _area(start, photo.features.image_size)
                state = self._on_device(urgency, lambda: head.predictor.start_state(area))
            request: ClickRequest | ZoomRequest
            if self._zoom is None:
                assert not isinstance(state, ZoomState)
                request = ClickRequest(photo.features, begun, state)
            else:
                if isinstance(state, torch.Tensor):  # a box is no mask yet: its first answer is on the whole photo
                    size = photo.features.image_size
                    known = BoxMask.of(start.mask if isinstance(start, StartMask) else np.zeros(size, np.bool_))
                    state = ZoomState(state, None, whole_view(size), known, 1.0)
                crop = partial(self._awaited_crop, photo, stages, given_up)
                request = zoom_request(photo.features, begun, state, crop, self._zoom)
            return self._executor.submit_together(urgency, _Answering(self, head.predictor), request).result()

        return self._memo.answer((photo.name, head.version, start), clicks, make)

    def _awaited_crop(self, photo: _Photo, stages: dict[str, float], given_up: GivenUp, view: View) -> ImageFeatures:
        with _timed(stages, "crop"), self._wanted((photo.name, view), given_up):
            return self._crop(photo, view, "crop", {})

    def _crop(self, photo: _Photo, view: View, kind: str, stages: dict[str, float]) -> ImageFeatures:
        """Features of a part of a photo, prepared for its head; encoded if they are new."""
        key = photo.name, view

        def make() -> ImageFeatures:
            with _overloaded_if_full():
                pixels = self._pixels(photo)
            top, left, bottom, right = view
            return self._encode(photo.head, key, pixels[top:bottom, left:right], kind, stages)

        return self._prepared(photo.head, key, key, self._features.get_or_make(key, make), stages)

    def _pixels(self, photo: _Photo) -> NDArray[np.uint8]:
        with nullcontext() if self._photos.peek(photo.name) is not None else self._fetching_place():
            return self._photos.get_or_make(photo.name, lambda: self._images.pixels(photo.image, photo.name))

    @contextmanager
    def _fetching_place(self) -> Iterator[None]:
        """One of the places for threads that wait for photos. Raises `NoPlaceError`."""
        if not self._fetching.acquire(blocking=False):
            raise NoPlaceError("too many photos are waited for: a source is slow; try again, or raise THREADS")
        try:
            yield
        finally:
            self._fetching.release()

    def _encode_ahead(self, photo: _Photo, clicks: tuple[Click, ...], state: ZoomState) -> None:
        """Begin to encode the crop that the next click is likely to need, in place of one that is waiting for an
        earlier click on the object."""
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
        except Exception as error:  # the next click will be told
            logger.warning("could not encode a crop ahead: %s", error)

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
    def _click_under_way(self) -> Iterator[None]:
        """While this holds, no part of a proposal is begun."""
        with self._no_click:
            self._clicks_under_way += 1
        try:
            yield
        finally:
            with self._no_click:
                self._clicks_under_way -= 1
                self._no_click.notify_all()

    @contextmanager
    def _wanted(self, awaited: Hashable, given_up: GivenUp) -> Iterator[None]:
        """While this holds, encoding an image, by its place, or a crop is more urgent than a prefetch, even if a
        prefetch began it."""
        with self._lock:
            self._waiting[awaited].append(given_up)
        try:
            yield
        finally:
            with self._lock:
                self._waiting[awaited].remove(given_up)
                if not self._waiting[awaited]:
                    del self._waiting[awaited]


@dataclass(frozen=True)
class _Answering:
    """Answers a batch by one head. Equal for all requests to that head, by which the executor knows what may share a
    batch."""

    annotator: Annotator
    predictor: PredictorLike

    def __call__(self, requests: Sequence[ClickRequest | ZoomRequest]) -> Sequence[Prediction | ZoomPrediction]:
        return self.annotator._relieved(lambda: self._answers(requests))

    def _answers(self, requests: Sequence[ClickRequest | ZoomRequest]) -> Sequence[Prediction | ZoomPrediction]:
        if isinstance(requests[0], ZoomRequest):  # so all are
            return predict_zoomed(cast(Predictor, self.predictor), cast(Sequence[ZoomRequest], requests))
        return self.predictor.predict(cast(Sequence[ClickRequest], requests))


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
def _overloaded_if_full() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise OverloadedError(
            "there is no memory for this photo now; try again, or lower IMAGE_MAX_PIXELS or THREADS"
        ) from None


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    finally:
        stages[name] = stages.get(name, 0.0) + (time.perf_counter() - begin) * 1000


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
