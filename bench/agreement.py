"""Whether bfloat16 gives the masks of float32: IoU of the two on real photos, click after click.

    python bench/agreement.py --dataset GrabCut=DIR Berkeley=DIR
    python bench/agreement.py --dataset GrabCut=DIR --limit 10 --clicks 3 --model weights.safetensors --device cuda

Both answer the clicks that the benchmark's annotator makes on float32's masks, each carries its own state from click to
click, so that differences may grow. Writes OUTPUT.json and OUTPUT.md, with the share of masks under an IoU of 0.995.
Exit status 1 if the median is under it, which is less than that every mask agrees; 2 for a model or folders that cannot
be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from bench.serving.rle import open_named
from skipclick import Click, Predictor, load_checkpoint
from skipclick.atomic_io import replaced_atomically
from skipclick.evaluation.datasets import Sample
from skipclick.evaluation.versions import software_versions
from skipclick.predictor import ClickRequest
from skipclick.simulation import next_click

ENOUGH = 0.995  # median IoU


def overlaps(exact: Predictor, fast: Predictor, sample: Sample, num_clicks: int) -> list[list[float]]:
    """IoU of the two predictors' masks, for each object after each click."""
    known = [predictor.encode(sample.image) for predictor in (exact, fast)]
    found = []
    for target in sample.targets.values():
        clicks: list[Click] = []
        states: list[Tensor | None] = [None, None]
        mask = np.zeros(target.shape, np.bool_)
        mine = []
        for _ in range(num_clicks):
            clicks.append(next_click(mask, target, [(int(c.y), int(c.x)) for c in clicks]))
            answers = [
                predictor.answer([ClickRequest(features, clicks, state)])[0]
                for predictor, features, state in zip((exact, fast), known, states, strict=True)
            ]
            states = [answer.state for answer in answers]
            mask, other = (answer.mask.full() for answer in answers)
            mine.append(iou(mask, other))
        found.append(mine)
    return found


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union; 1 for two empty masks."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def table(by_dataset: dict[str, NDArray[np.float64]]) -> str:
    """Markdown, of IoUs (objects, clicks) by data set."""
    lines = [
        "| data set | objects | clicks | median IoU | 10th percentile | least | under 0.995 |",
        "|---" * 7 + "|",
    ]
    for name, ious in by_dataset.items():
        lines.append(
            f"| {name} | {ious.shape[0]} | {ious.shape[1]} | {np.median(ious):.4f} | {np.quantile(ious, 0.1):.4f} | "
            f"{ious.min():.4f} | {np.mean(ious < ENOUGH):.0%} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", required=True, metavar="NAME=DIR", help="as for bench/noc.py")
    parser.add_argument("--model", default="bundled", help="checkpoint (default: bundled)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--limit", type=int, default=50, help="photos of each data set (default: 50)")
    parser.add_argument("--clicks", type=int, default=5, help="for each object (default: 5)")
    parser.add_argument("--output", type=Path, default=Path("runs/agreement"), help="names of the results, no ending")
    options = parser.parse_args(arguments)
    try:
        if options.limit < 1 or options.clicks < 1:
            raise ValueError("--limit and --clicks must be at least 1")
        model = load_checkpoint(options.model)
        exact, fast = (Predictor(model, device=options.device, dtype=dtype) for dtype in ("float32", "bfloat16"))
        by_dataset = {}
        for dataset in [open_named(text) for text in options.dataset]:
            ious: list[list[float]] = []
            for photo in tqdm(dataset.photos[: options.limit], desc=dataset.name, unit="photo", disable=None):
                ious += overlaps(exact, fast, photo.load(), options.clicks)
            by_dataset[dataset.name] = np.array(ious)
    except (ValueError, OSError) as error:
        print(f"agreement: {error}", file=sys.stderr)
        return 2
    text = table(by_dataset)
    print(text)
    facts = {"command": sys.argv, "versions": software_versions(), "model": exact.version}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replaced_atomically(options.output.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({**facts, "iou": {n: v.tolist() for n, v in by_dataset.items()}}, indent=1))
    with replaced_atomically(options.output.with_suffix(".md")) as temporary:
        temporary.write_text(text)
    return 0 if all(np.median(ious) >= ENOUGH for ious in by_dataset.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
