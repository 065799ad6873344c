"""How fast masks become Label Studio's RLE and come back: this project beside label-studio-sdk, in one run.

    python bench/serving/rle.py --dataset GrabCut=DIR Berkeley=DIR      data sets of bench/noc.py
    python bench/serving/rle.py --dataset GrabCut=DIR --count 5 --rounds 3

Their masks are scaled up to 1920 x 1080 and 4000 x 3000 pixels. Both encoders get the mask that is at hand where they
work: ours the box that the predictor answers with ("box") or a whole array ("array"), the SDK the array that it wants.
The streams must be the same. Noise, every pixel by chance, is the worst that a mask can be. Encoders take turns. Writes
OUTPUT.json and OUTPUT.md. Exit status 2 for folders that are not such data sets.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from label_studio_sdk.converter import brush
from numpy.typing import NDArray
from tqdm import tqdm

from skipclick.atomic_io import replaced_atomically
from skipclick.brush_rle import decode, encode
from skipclick.evaluation.datasets import EvaluationSet, open_dataset
from skipclick.evaluation.versions import software_versions
from skipclick.masks import BoxMask

SIZES = {"1080p": (1080, 1920), "12 megapixels": (3000, 4000)}


@dataclass(frozen=True)
class Timing:
    """One mask at one size: milliseconds by way, the median of the rounds."""

    mask: str
    size: str
    milliseconds: dict[str, float]
    runs: int
    """How often the mask changes between object and background along its rows."""


def measure(name: str, size: str, mask: NDArray[np.bool_], rounds: int) -> Timing:
    """All ways on one mask, by turns. Raises `AssertionError` if two streams differ."""
    boxed, alpha = BoxMask.of(mask), mask.astype(np.uint8) * 255
    stream = encode(boxed)
    theirs = brush.mask2rle(alpha)  # type: ignore[no-untyped-call]
    assert stream == encode(mask) and stream in (theirs, theirs[:-1])  # noqa: PT018 - the SDK may add a zero byte
    assert np.array_equal(decode(stream, *mask.shape), alpha)
    ways: dict[str, Callable[[], object]] = {
        "encode, SDK": lambda: brush.mask2rle(alpha),  # type: ignore[no-untyped-call]
        "encode, array": lambda: encode(mask),
        "encode, box": lambda: encode(boxed),
        "decode, SDK": lambda: brush.decode_rle(stream),
        "decode": lambda: decode(stream, *mask.shape),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            begin = time.perf_counter()
            work()
            times[way].append((time.perf_counter() - begin) * 1000)
    changes = int(np.count_nonzero(np.diff(mask.reshape(-1))))
    return Timing(name, size, {way: float(np.median(each)) for way, each in times.items()}, changes)


def read_masks(datasets: Sequence[EvaluationSet], count: int) -> dict[str, NDArray[np.bool_]]:
    """The first object of up to `count` photos of each set, evenly spread."""
    masks = {}
    for dataset in datasets:
        for photo in dataset.photos[:: max(1, len(dataset) // count)][:count]:
            for target in list(photo.load().targets.values())[:1]:
                masks[f"{dataset.name} {photo.name}"] = target == 1
    return masks


def scaled(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask brought to (H, W) with smooth edges, as a network's answer would have."""
    soft = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    large: NDArray[np.bool_] = soft > 0.5
    return large


def open_named(text: str) -> EvaluationSet:
    """The data set of "NAME=DIR". Raises `ValueError` where there is none."""
    name, separator, folder = text.partition("=")
    if not separator:
        raise ValueError(f"{text} is not NAME=DIR, such as GrabCut=data/GrabCut")
    return open_dataset(name, Path(folder))


def table(timings: Sequence[Timing]) -> str:
    """Markdown: medians over the masks of a size, and how many times faster than the SDK we are on each."""
    lines = [
        "| size | masks | encode: SDK, ms | array | box | times faster, median (least) | decode: SDK, ms | ours |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for size in dict.fromkeys(timing.size for timing in timings):
        mine = [timing.milliseconds for timing in timings if timing.size == size]
        median = {way: float(np.median([each[way] for each in mine])) for way in mine[0]}
        ratios = [each["encode, SDK"] / each["encode, box"] for each in mine]
        lines.append(
            f"| {size} | {len(mine)} | {median['encode, SDK']:.2f} | {median['encode, array']:.2f} | "
            f"{median['encode, box']:.2f} | {np.median(ratios):.0f} ({min(ratios):.0f}) | "
            f"{median['decode, SDK']:.2f} | {median['decode']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", required=True, metavar="NAME=DIR", help="as for bench/noc.py")
    parser.add_argument("--count", type=int, default=20, help="masks of each data set (default: 20)")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions (default: 7)")
    parser.add_argument("--output", type=Path, default=Path("runs/rle"), help="names of the results, without ending")
    options = parser.parse_args(arguments)
    try:
        if options.count < 1 or options.rounds < 1:
            raise ValueError("--count and --rounds must be at least 1")
        masks = read_masks([open_named(text) for text in options.dataset], options.count)
    except (ValueError, OSError) as error:
        print(f"rle: {error}", file=sys.stderr)
        return 2
    timings = []
    rng = np.random.default_rng(0)
    for size, shape in SIZES.items():
        for name, mask in tqdm(masks.items(), desc=size, unit="mask", disable=None):
            timings.append(measure(name, size, scaled(mask, shape), options.rounds))
    timings.append(measure("noise", "1080p, noise", rng.random(SIZES["1080p"]) > 0.5, 1))
    text = table(timings)
    print(text)
    facts = {"command": sys.argv, "versions": software_versions(), "timings": [asdict(timing) for timing in timings]}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replaced_atomically(options.output.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(facts, indent=1))
    with replaced_atomically(options.output.with_suffix(".md")) as temporary:
        temporary.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
