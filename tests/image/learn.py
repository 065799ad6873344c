"""A few steps of fine-tuning with the bundled model; run inside the image, whose Python reads it from the command line.

Prints the candidate's report as JSON.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from skipclick import load_checkpoint
from skipclick.evaluation.datasets import check_set
from train.finetune import Example, FinetuneConfig, finetune


def drawn_example(number: int) -> Example:
    """A bright square on a noisy ground."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 90, (96, 128, 3)).astype(np.uint8)
    target = np.zeros((96, 128), np.int8)
    target[20:64, 30:82] = 1
    image[target == 1] += 140
    return Example(f"drawn-{number}", lambda: image, lambda: target)


def main() -> None:
    """Learn from ten drawn images."""
    config = FinetuneConfig(steps=4, views=1, checks=1)
    found = finetune(load_checkpoint("bundled"), [drawn_example(n) for n in range(10)], [check_set()[0]], config)
    print(json.dumps(asdict(found.report), default=str))


if __name__ == "__main__":
    main()
