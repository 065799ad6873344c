"""A long session of a team: every mask is compared with the serial answer, and memory must stay flat.

    python bench/serving/soak.py                                  8 annotators, 60 drawn photos, 10,000 clicks
    python bench/serving/soak.py --images DIR --clicks 2000       photos of a folder

The annotators work on the backend's `Annotator` at once, without HTTP, with caches that hold about half of what they
use; the memo of earlier clicks is thrown away now and then, as by a restart. Afterwards one thread computes each
request by definition, click after click, with nothing cached. Exit status 1 if a mask differs, a request fails or
memory grows. With --batch, clicks that wait together run as one batch, which may change the last bits: then masks and
scores may differ by ALLOWED_DIFFERENCE, and the report says by how much they do.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from backend.annotator import Annotator
from backend.executor import DeviceExecutor
from backend.heads import Head, Heads
from backend.images.decode import DecodedImage
from backend.images.loader import Look
from backend.prompts import ImageReference, SmartClick
from bench.cli import CommandParser, write_results
from bench.serving.annotators import Request, photos, session
from skipclick import Click, Predictor, load_checkpoint
from skipclick.cache import ByteLru, CacheStats, SharedCache
from skipclick.evaluation.option_types import positive
from skipclick.features import ImageFeatures
from skipclick.masks import BoxMask
from skipclick.predictor import ClickRequest, Prediction
from skipclick.zoom import DEFAULT_RULE, ZoomPrediction, crop_encoder, predict_zoomed, zoom_request

WARM_UP = 0.25  # part of the session in which memory may grow
ALLOWED_GROWTH = 32 << 20  # bytes between the first and the last fifth after the warm-up
ALLOWED_DIFFERENCE = 0.001  # of the pixels of a mask, and of a score, in batches
_FORGET_EVERY = 500  # clicks

T = TypeVar("T")


@dataclass(frozen=True)
class PackedAnswer:
    """An answer in little memory; two are equal if mask and score are, to the bit."""

    score: float
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    packed: bytes

    @staticmethod
    def of(mask: BoxMask, score: float) -> PackedAnswer:
        return PackedAnswer(score, mask.size, mask.box, zlib.compress(np.packbits(mask.pixels).tobytes(), 1))

    def full(self) -> NDArray[np.bool_]:
        """The mask, bool (H, W)."""
        top, left, bottom, right = self.box
        shape = bottom - top, right - left
        bits = np.unpackbits(np.frombuffer(zlib.decompress(self.packed), np.uint8), count=shape[0] * shape[1])
        return BoxMask(self.size, self.box, bits.reshape(shape).astype(np.bool_)).full()

    def difference(self, other: PackedAnswer) -> float:
        """The larger of the share of pixels that differ and the difference of the scores."""
        if self == other:
            return 0.0
        return max(float((self.full() != other.full()).mean()), abs(self.score - other.score))


@dataclass(frozen=True)
class SoakReport:
    """What came of a session."""

    clicks: int
    different: int
    """Answers that are not the serial one, to the bit."""
    worst: float
    """The largest `PackedAnswer.difference` to a serial answer."""
    batch: int
    errors: dict[str, int]
    seconds: float
    memory: list[tuple[int, int]]
    """(clicks so far, bytes that the process holds), in order."""
    caches: dict[str, CacheStats] = field(default_factory=dict)

    @property
    def growth(self) -> int:
        """Bytes by which memory grew after the warm-up: the median of its last fifth less that of its first."""
        after = [held for done, held in self.memory if done >= WARM_UP * self.clicks]
        fifth = max(1, len(after) // 5)
        return int(np.median(after[-fifth:]) - np.median(after[:fifth])) if after else 0

    @property
    def clean(self) -> bool:
        same = self.different == 0 or (self.batch > 1 and self.worst <= ALLOWED_DIFFERENCE)
        return same and not self.errors and self.growth <= ALLOWED_GROWTH

    def lines(self) -> Iterator[str]:
        """The report in words."""
        yield f"{self.clicks} clicks in {self.seconds:.0f} s; {self.different} differ from the serial answer"
        if self.different:
            yield f"the largest difference, in pixels of the mask or in score, is {100 * self.worst:.4f} %"
        yield f"errors: {', '.join(f'{n} x {error}' for error, n in self.errors.items()) or 'none'}"
        held = [f"{done}: {used / 2**20:.0f}" for done, used in self.memory[:: max(1, len(self.memory) // 8)]]
        yield f"memory in MiB by clicks: {', '.join(held)}; growth after the warm-up {self.growth / 2**20:+.1f}"
        for name, stats in self.caches.items():
            yield f"cache {name}: {stats.hits} hits, {stats.misses} misses, {stats.evictions} evictions"


@dataclass(frozen=True)
class Given:
    """Photos that are already there, by number."""

    pictures: Sequence[NDArray[np.uint8]]

    def place(self, reference: ImageReference) -> str:
        return reference.url

    def recent(self, reference: ImageReference, unconfirmed: bool = False) -> str | None:
        return reference.url

    def look(self, reference: ImageReference, find: Callable[[str], T | None], doubt: bool = False) -> Look[T]:
        kept = find(reference.url)
        if kept is not None:
            return Look(reference.url, kept, asked=False)
        pixels = self.pictures[int(reference.url)]
        return Look(reference.url, photo=DecodedImage(pixels, (pixels.shape[0], pixels.shape[1])))

    def pixels(self, reference: ImageReference, name: str) -> NDArray[np.uint8]:
        return self.pictures[int(name)]


def soak(
    predictor: Predictor,
    pictures: Sequence[NDArray[np.uint8]],
    num_clicks: int,
    num_annotators: int,
    batch: int = 1,
    zoom: bool = True,
) -> SoakReport:
    """Play a session and check it; `batch` clicks may run together."""
    features_size = predictor.encode(pictures[0]).nbytes
    features: SharedCache[ImageFeatures] = SharedCache("features", ByteLru(features_size * max(1, len(pictures) // 2)))
    annotator = Annotator(
        Heads(Head(predictor.version, predictor)),
        Given(pictures),
        DeviceExecutor(batch=batch),
        features=features,
        memo_bytes=50 * 4 * predictor.resolution[0] * predictor.resolution[1],
        zoom=DEFAULT_RULE if zoom else None,
        photo_bytes=sum(picture.nbytes for picture in pictures) // 2,
    )
    found: list[tuple[Request, Callable[[], PackedAnswer]]] = []
    errors: Counter[str] = Counter()
    memory: list[tuple[int, int]] = []
    numbers = count(1)
    lock = threading.Lock()
    sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
    begin = time.perf_counter()

    def work(seed: int, bar: tqdm[Any]) -> None:
        for request in session(seed, sizes):
            number = next(numbers)
            if number > num_clicks:
                return
            if number % _FORGET_EVERY == 0:
                annotator.forget()
            smart = [SmartClick("", int(click.x), int(click.y), click.positive) for click in request.clicks]
            try:
                annotation = annotator.annotate(ImageReference(str(request.image)), smart, None, sizes[request.image])
            except Exception as error:
                errors[f"{type(error).__name__}: {error}"] += 1
                continue
            outcome = PackedAnswer.of(annotation.mask, annotation.score)
            with lock:
                found.append((request, kept(outcome, spool)))
                bar.update()
                if number % max(1, num_clicks // 50) == 0:
                    memory.append((number, held_bytes()))

    with TemporaryFile() as spool:
        with tqdm(total=num_clicks, unit="click", disable=None) as bar, ThreadPoolExecutor(num_annotators) as pool:
            for worker in [pool.submit(work, seed, bar) for seed in range(num_annotators)]:
                worker.result()
        seconds = time.perf_counter() - begin
        caches = annotator.cache_stats()
        annotator.close()
        differences = [mine.difference(serial) for mine, serial in serial_answers(predictor, pictures, found, zoom)]
    different = sum(difference > 0 for difference in differences)
    worst = max(differences, default=0.0)
    return SoakReport(num_clicks, different, worst, batch, dict(errors), seconds, sorted(memory), caches)


def kept(outcome: PackedAnswer, spool: IO[bytes]) -> Callable[[], PackedAnswer]:
    """What gives an outcome back. It lies in a file: in memory ten thousand would look like a leak of the backend's."""
    place = spool.seek(0, io.SEEK_END)
    facts = outcome.score, outcome.size, outcome.box, len(outcome.packed)
    spool.write(json.dumps(facts).encode() + b"\n" + outcome.packed)

    def read() -> PackedAnswer:
        spool.seek(place)
        score, size, box, length = json.loads(spool.readline())
        return PackedAnswer(score, tuple(size), tuple(box), spool.read(length))

    return read


def serial_answers(
    predictor: Predictor,
    pictures: Sequence[NDArray[np.uint8]],
    found: Sequence[tuple[Request, Callable[[], PackedAnswer]]],
    zoom: bool,
) -> Iterator[tuple[PackedAnswer, PackedAnswer]]:
    """Each answer beside that of one click after the other, each on the state of the one before."""
    by_image: defaultdict[int, list[tuple[Request, Callable[[], PackedAnswer]]]] = defaultdict(list)
    for request, answer in found:
        by_image[request.image].append((request, answer))
    for image, answers in tqdm(by_image.items(), unit="image", desc="serial answers", disable=None):
        features, encode_crop = predictor.encode(pictures[image]), crop_encoder(predictor, pictures[image])
        known: dict[tuple[Click, ...], Prediction | ZoomPrediction] = {}
        for request, answer in answers:
            for num_clicks in range(1, len(request.clicks) + 1):
                clicks = request.clicks[:num_clicks]
                if clicks not in known:
                    state: Any = known[clicks[:-1]].state if num_clicks > 1 else None
                    if zoom:
                        crop = zoom_request(features, clicks, state, encode_crop)
                        (known[clicks],) = predict_zoomed(predictor, [crop])
                    else:
                        (known[clicks],) = predictor.predict([ClickRequest(features, clicks, state)])
            serial = known[request.clicks]
            yield answer(), PackedAnswer.of(serial.mask, serial.score)


def held_bytes() -> int:
    """Bytes of memory that the process holds now (Linux), or at most held so far (elsewhere)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--model", default="bundled", help="checkpoint (default: bundled)")
    parser.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument("--images", type=Path, help="folder with photos (default: drawn ones)")
    parser.add_argument("--photos", type=positive, default=60, help="how many (default: 60)")
    parser.add_argument("--annotators", type=positive, default=8)
    parser.add_argument("--clicks", type=positive, default=10_000)
    parser.add_argument("--batch", type=positive, default=1, help="clicks that may run as one batch (default: 1)")
    parser.add_argument("--no-zoom", action="store_true", help="look at the whole photo always, as ZOOM=off does")
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    options = parser.parse_args(arguments)
    try:
        predictor = Predictor(load_checkpoint(options.model), dtype=options.dtype)
        pictures = photos(options.images, options.photos)
    except (ValueError, OSError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    report = soak(predictor, pictures, options.clicks, options.annotators, options.batch, not options.no_zoom)
    print("\n".join(report.lines()))
    if options.output is not None:
        write_results(options.output, {"growth": report.growth, **asdict(report)})
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
