"""The simulated annotator at work: photos and their objects in, every click and its IoU out.

A photo is encoded once for all its objects, and the objects are clicked in one batch. What comes out depends on the
photos that are given together and on nothing else: not on processes, not on timing, not on what was measured before.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeGuard, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from skipclick import Click, Predictor
from skipclick.evaluation.datasets import Sample
from skipclick.evaluation.results import ObjectResult
from skipclick.evaluation.starts import GIVEN, box_of, noisy_mask, read_given, read_start
from skipclick.features import ImageFeatures
from skipclick.masks import MASK_THRESHOLD, Box
from skipclick.metrics import mask_iou
from skipclick.predictor import BOX_PROBABILITY, ClickRequest
from skipclick.simulation import correcting_clicks, jittered_click, next_click
from skipclick.zoom import ZoomRequest, crop_encoder, predict_zoomed, start_in_box, start_zoomed, zoom_request

F = TypeVar("F")

MAX_BATCH = 16
"""Maximum number of objects clicked together; bounds the memory for photos with a hundred objects."""


class ClickModel(Protocol[F]):
    """What is measured: anything with the two calls of `Predictor`."""

    @property
    def version(self) -> str:
        """Name of the method and its weights."""

    def encode(self, image: NDArray[np.uint8]) -> F:
        """All that depends on the photo alone; uint8 RGB (H, W, 3)."""

    def click(self, features: F, clicks: Sequence[Click], previous: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """The object's probability, float32 (H, W), after all its clicks."""


@runtime_checkable
class BatchModel(Protocol):
    """A model that can also click several objects at once."""

    def click_batch(
        self,
        features: Sequence[Any],
        clicks: Sequence[Sequence[Click]],
        previous: Sequence[NDArray[np.float32] | None],
    ) -> list[NDArray[np.float32]]:
        """`click` for each object."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The evaluation protocol; the defaults are those of the published figures."""

    protocol: Literal["paper", "serve"] = "paper"
    """"paper": as the released code evaluates. "serve": `Predictor.predict`, what annotators get."""
    clicks: Literal["center", "jitter", "weighted"] = "center"
    """Where in the largest error: its deepest pixel, anywhere in its inner half, or anywhere, a pixel as likely as it
    is deep."""
    seeds: tuple[int, ...] = ()
    """Seeds of random clicks; every object is measured once with each."""
    num_clicks: int = 20
    """Maximum number of clicks per object, which is also the NoC of an object that fails."""
    thresholds: tuple[int, ...] = (85, 90, 95)
    """IoU in percent whose NoC is reported."""
    target_iou: float = 0.95
    """An object is finished once it is this good."""
    threshold: float = 0.49
    """A pixel belongs to the mask above this probability."""
    flip: bool = True
    """Average the logits with the mirrored photo's (models of this project only)."""
    zoom: bool = False
    """From the second click on, look at a crop around the object: `skipclick.zoom` ("serve" and models of this project
    only)."""
    start: str | None = None
    """What an object begins with: nothing, its "box" (whose middle is the first click), a mask with "noise" to be
    corrected, a mask that comes with the data set ("sp" or "stm" of DAVIS-585), or the masks in a folder, see
    `starts`."""

    def to_dict(self) -> dict[str, Any]:
        """As it stands in result files."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Rules:
        """What `to_dict` returned."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return Rules(**fields)


def make_rules(
    protocol: Literal["paper", "serve"],
    clicks: Literal["center", "jitter", "weighted"],
    num_seeds: int,
    thresholds: Sequence[int],
    flip: bool | None,
    zoom: bool | None = None,
    start: str | None = None,
) -> Rules:
    """The rules of a protocol; if `flip` or `zoom` is None, the protocol decides.

    Raises ValueError for combinations that make no sense. An object is clicked until it reaches the highest threshold,
    or 95 % if all are lower, so that the choice of thresholds does not change the clicks.
    """
    serve = protocol == "serve"
    if serve and flip:
        raise ValueError("the server does not average with the mirrored photo: omit --flip, or use --protocol paper")
    if zoom and not serve:
        raise ValueError("published figures are without zoom-in: omit --zoom, or use --protocol serve")
    return Rules(
        protocol=protocol,
        clicks=clicks,
        seeds=tuple(range(num_seeds)) if clicks != "center" else (),
        thresholds=tuple(sorted(set(thresholds))),
        target_iou=max(95, *thresholds) / 100,
        threshold=MASK_THRESHOLD if serve else Rules.threshold,
        flip=not serve if flip is None else flip,
        zoom=serve if zoom is None else zoom,
        start=start,
    )


@dataclass(eq=False)
class _Session(Generic[F]):
    """One object while it is being clicked."""

    image: str
    object_id: int
    category: str | None
    target: NDArray[np.int8]
    features: F
    encode_ms: float
    starts: Mapping[str, Path] = field(default_factory=dict)
    """Masks to start from that come with the data set."""
    encode_crop: Callable[[Box], ImageFeatures] | None = None
    """Of a session with zoom-in."""
    mask: NDArray[np.bool_] = field(init=False)
    """After the last click, bool (H, W)."""
    first_click: Click | None = None
    """The one that goes with a box."""
    box: NDArray[np.bool_] | None = None
    """Area, bool (H, W), of a box around the object, which the first answer keeps to."""
    state: Any = None
    """What the model hands from click to click: its last probability, or whatever `Predictor.predict` keeps."""
    clicks: list[Click] = field(default_factory=list)
    """The annotator's."""
    given: list[Click] = field(default_factory=list)
    """What the model gets: the annotator's clicks, and before the first one whatever the server puts there."""
    ious: list[float] = field(default_factory=list)
    click_ms: list[float] = field(default_factory=list)
    crops: set[Box] = field(default_factory=set)
    """Views of the photo that were encoded besides the whole."""

    def __post_init__(self) -> None:
        self.mask = np.zeros(self.target.shape, np.bool_)

    def is_open(self, rules: Rules) -> bool:
        """Whether it needs another click."""
        return len(self.clicks) < rules.num_clicks and (not self.ious or self.ious[-1] < rules.target_iou)

    def begin(self, model: Any, rules: Rules) -> None:
        """Give the model what the object begins with."""
        size = (self.target.shape[0], self.target.shape[1])
        if rules.start is None or not (self.target == 1).any():
            return
        if rules.start == "box":
            self.box, self.first_click = box_of(self.target)
        elif rules.start == "noise":
            self.mask = noisy_mask(self.target, self.image, self.object_id)
        elif rules.start in GIVEN:
            self.mask = read_given(self.starts, rules.start, self.image, size)
        else:
            self.mask = read_start(Path(rules.start), self.image, self.object_id, size)
        known, inside = (self.mask, 1.0) if self.box is None else (self.box, BOX_PROBABILITY)
        if _zooms(model, rules):
            self.state = start_zoomed(model, known) if self.box is None else start_in_box(model, known)
        elif rules.protocol == "serve" and isinstance(model, Predictor):
            self.state = model.start_state(known, inside)
        else:
            self.state = inside * known.astype(np.float32)

    @property
    def within(self) -> NDArray[np.bool_] | None:
        """The area, bool (H, W), that the next answer keeps to."""
        return self.box if len(self.given) == 1 else None

    def takes_lead(self, rules: Rules) -> bool:
        """Whether the server gives a click of its own before the annotator's first one, which then is in `given`: it
        does where a mask is corrected by a negative click, see `correcting_clicks`."""
        if rules.protocol != "serve" or self.state is None or self.first_click is not None or len(self.clicks) != 1:
            return False
        self.given = list(correcting_clicks(self.mask, self.clicks)[:-1])
        return bool(self.given)

    def next_click(self, seed: int | None, *, weighted: bool) -> Click:
        """Where the annotator clicks now."""
        if self.first_click is not None and not self.clicks:
            return self.first_click
        clicked = [(int(click.y), int(click.x)) for click in self.clicks]
        if seed is None:
            return next_click(self.mask, self.target, clicked)
        address = (seed, zlib.crc32(self.image.encode()), self.object_id, len(clicked))
        return jittered_click(self.mask, self.target, clicked, np.random.default_rng(address), weighted=weighted)

    def result(self) -> ObjectResult:
        return ObjectResult(
            self.image,
            self.object_id,
            self.category,
            self.ious,
            self.clicks,
            self.encode_ms,
            self.click_ms,
            extent_of(self.target),
            len(self.crops),
        )


def extent_of(target: NDArray[np.int8]) -> float:
    """How much of the photo's height or width an object takes, whichever is more; 0 if it has no pixels."""
    is_object = target == 1
    sides = [np.flatnonzero(is_object.any(axis=axis)) for axis in (1, 0)]
    parts = zip(sides, target.shape, strict=True)
    return max((int(side[-1] - side[0]) + 1) / length if side.size else 0.0 for side, length in parts)


def simulate(
    model: ClickModel[F], features: F, target: NDArray[np.int8], rules: Rules | None = None
) -> tuple[list[float], list[Click], list[float]]:
    """Segment one object by centre clicks: IoU after each click, the clicks, milliseconds of each.

    features: `model.encode` of the photo. target: int8 (H, W), 1 object, 0 background, -1 ignored.
    """
    session = _Session("", 1, None, target, features, 0.0)
    _click_until_good(model, [session], rules or Rules(), None, nullcontext())
    return session.ious, session.clicks, session.click_ms


def evaluate(
    model: ClickModel[F], samples: Iterable[Sample], rules: Rules | None = None, seed: int | None = None
) -> Iterator[ObjectResult]:
    """Simulate all objects of all samples, one photo after the other, in order.

    An iterator: wrap it in `list`, or watch the results as they come. seed: of random clicks; None clicks centres.
    """
    for sample in samples:
        yield from evaluate_together(model, [sample], rules or Rules(), seed)


def evaluate_together(
    model: ClickModel[F],
    samples: Sequence[Sample],
    rules: Rules,
    seed: int | None,
    device: AbstractContextManager[Any] | None = None,
) -> list[ObjectResult]:
    """Simulate all objects of some photos, in batches of up to `MAX_BATCH` objects.

    device: held while the network works, such as a lock of several threads.
    """
    device = device or nullcontext()
    sessions: list[_Session[F]] = []
    for sample in samples:
        with _stopwatch(device) as milliseconds:
            features = model.encode(sample.image)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            encode_ms = milliseconds()
        for object_id, target in sample.targets.items():
            encode_crop = crop_encoder(model, sample.image) if _zooms(model, rules) else None
            about = (sample.name, object_id, sample.category, target)
            sessions.append(_Session(*about, features, encode_ms, sample.starts, encode_crop))
            with device:
                sessions[-1].begin(model, rules)
    for first in range(0, len(sessions), MAX_BATCH):
        _click_until_good(model, sessions[first : first + MAX_BATCH], rules, seed, device)
    return [session.result() for session in sessions]


def replay(model: ClickModel[F], image: NDArray[np.uint8], clicks: Sequence[Click], rules: Rules) -> NDArray[np.bool_]:
    """The mask, bool (H, W), after recorded clicks, given one after the other as they once were."""
    encode_crop = crop_encoder(model, image) if _zooms(model, rules) else None
    target = np.zeros(image.shape[:2], np.int8)
    session = _Session("", 1, None, target, model.encode(image), 0.0, encode_crop=encode_crop)
    for click in clicks:
        session.given.append(click)
        [(session.mask, session.state)], _ = _answers(model, [session], rules, nullcontext())
    return session.mask


@contextmanager
def _stopwatch(device: AbstractContextManager[Any]) -> Iterator[Callable[[], float]]:
    """Yields the milliseconds so far; waiting for the device does not count."""
    with device:
        started = time.perf_counter()
        yield lambda: 1e3 * (time.perf_counter() - started)


def _click_until_good(
    model: ClickModel[F],
    sessions: Sequence[_Session[F]],
    rules: Rules,
    seed: int | None,
    device: AbstractContextManager[Any],
) -> None:
    """Click all objects in step; those that are finished leave the batch."""
    while still_open := [session for session in sessions if session.is_open(rules)]:
        for session in still_open:
            session.clicks.append(session.next_click(seed, weighted=rules.clicks == "weighted"))
        if led := [session for session in still_open if session.takes_lead(rules)]:
            answers, _ = _answers(model, led, rules, device)
            for session, (_, state) in zip(led, answers, strict=True):
                session.state = state
        for session in still_open:
            session.given.append(session.clicks[-1])
        answers, milliseconds = _answers(model, still_open, rules, device)
        for session, (session.mask, session.state) in zip(still_open, answers, strict=True):
            session.ious.append(mask_iou(session.mask, session.target))
            session.click_ms.append(milliseconds / len(still_open))


def _zooms(model: Any, rules: Rules) -> TypeGuard[Predictor]:
    return rules.protocol == "serve" and rules.zoom and isinstance(model, Predictor)


def _answers(
    model: ClickModel[F], sessions: Sequence[_Session[F]], rules: Rules, device: AbstractContextManager[Any]
) -> tuple[list[tuple[NDArray[np.bool_], Any]], float]:
    """For each object the mask after its last click, bool (H, W), and what the model wants back at the next; and the
    milliseconds of these clicks, without those of encoding crops."""
    requests: list[ZoomRequest] = []
    answers: list[tuple[NDArray[np.bool_], Any]]
    if _zooms(model, rules):
        with device:
            requests = [_zoom_request(session) for session in sessions]
    with _stopwatch(device) as milliseconds:
        if _zooms(model, rules):
            answers = [(answer.mask.full(), answer.state) for answer in predict_zoomed(model, requests)]
        elif rules.protocol == "serve" and isinstance(model, Predictor):
            served = model.predict([ClickRequest(one.features, one.given, one.state, one.within) for one in sessions])
            answers = [(answer.mask.full(), answer.state) for answer in served]
        else:
            features, clicks, states = zip(*((one.features, one.given, one.state) for one in sessions), strict=True)
            if isinstance(model, BatchModel):
                probabilities = model.click_batch(features, clicks, states)
            else:
                probabilities = list(map(model.click, features, clicks, states))
            probabilities = [
                probability if one.within is None else probability * one.within
                for one, probability in zip(sessions, probabilities, strict=True)
            ]
            answers = [(probability > rules.threshold, probability) for probability in probabilities]
        return answers, milliseconds()


def _zoom_request(session: _Session[Any]) -> ZoomRequest:
    if session.encode_crop is None:
        raise ValueError("zoom-in needs the photo: use `evaluate`, or rules without zoom")
    request = zoom_request(session.features, session.given, session.state, session.encode_crop, within=session.within)
    if request.features is not session.features:
        session.crops.add(request.view)
    return request
