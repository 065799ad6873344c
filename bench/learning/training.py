"""What a training run costs: operations per photo, the speed of a step here, and hours for the whole schedule.

    python bench/learning/training.py                                       the paper's recipe on ViT-B/14, a batch of 2
    python bench/learning/training.py --preset baseline --precision float32
    python bench/learning/training.py --device cuda --batch 32 --rounds 20  where there is a GPU
    python bench/learning/training.py --peak 989                            hours at so many dense bfloat16 TFLOP/s

Random photos and weights: speed does not depend on values. A step is timed for 0 to 3 simulated corrections, which are
equally likely (released code), and set against the rate of plain matrix products on this device. The share that it
reaches is what supports the estimate for another device of a known peak. Reading photos is not timed: `python -m train
inspect --speed` does that.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from bench.serving.latency import matmul_rate
from skipclick.config import PRESETS, preset
from skipclick.model import SkipClick
from train.config import PRECISIONS, RECIPES, TrainConfig
from train.dataset import Batch
from train.sampler import NUM_SLOTS
from train.step import Objective, object_generators


@dataclass(frozen=True)
class StepCost:
    """A step with so many simulated corrections."""

    num_next_clicks: int
    flops: int
    """Floating-point operations for the whole batch."""
    seconds: float
    """Median."""


def random_batch(batch_size: int, crop: int, device: torch.device) -> Batch:
    """Photos of noise with a square object each, and a positive click in it."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch_size, 3, crop, crop), dtype=torch.uint8, generator=generator)
    target = torch.zeros(batch_size, crop, crop, dtype=torch.int8)
    target[:, crop // 4 : crop // 2, crop // 4 : crop // 2] = 1
    nothing = torch.full((batch_size, NUM_SLOTS, 2), -1.0)
    positives = nothing.clone()
    positives[:, 0] = crop * 3 / 8
    return Batch(image, target, positives, nothing).to(device)


def step_cost(objective: Objective, batch: Batch, num_next_clicks: int, rounds: int) -> StepCost:
    """Counts one forward and backward pass, then times `rounds` of them."""
    positions = range(len(batch.image))

    def step() -> None:
        objective.zero_grad()
        rngs = object_generators(0, positions, 1)
        objective(batch, num_next_clicks, rngs).loss.backward()
        if batch.image.is_cuda:
            torch.cuda.synchronize()

    with FlopCounterMode(display=False) as counter:
        step()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return StepCost(num_next_clicks, counter.get_total_flops(), median(seconds))


def report(
    config: TrainConfig, batch_size: int, costs: Sequence[StepCost], rate: float, device: str, peak: float
) -> str:
    """Markdown. `rate`: matrix products here, 10^9 operations per second; `peak`: of the other device, in 10^12."""
    gflop = mean(cost.flops for cost in costs) / batch_size / 1e9  # the numbers of corrections are equally likely
    seconds = mean(cost.seconds for cost in costs) / batch_size
    share = gflop / seconds / rate
    photos = config.steps * config.batch_size
    there = peak * 1e3 * share / gflop
    rows = [
        f"| {cost.num_next_clicks} | {cost.flops / batch_size / 1e9:,.0f} | {cost.seconds / batch_size * 1e3:,.0f} | "
        f"{cost.flops / cost.seconds / 1e9 / rate:.0%} |"
        for cost in costs
    ]
    return "\n".join(
        [
            "| corrections | GFLOP per photo | ms per photo | of the matrix-product rate |",
            "|---:|---:|---:|---:|",
            *rows,
            "",
            f"On average {gflop:,.0f} GFLOP and {1e3 * seconds:,.0f} ms per photo ({1 / seconds:.2f} photos/s) on "
            f"{device}, where matrix products run at {rate:,.0f} GFLOP/s: {share:.0%} of that.",
            f"The schedule, {photos:,} photos: {photos * seconds / 3600:,.0f} hours here; "
            f"{photos * gflop / 1e6:,.0f} PFLOP.",
            f"At the same share of {peak:g} TFLOP/s: {there:,.0f} photos/s, {photos / there / 3600:,.1f} hours.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="skip", help="row of Table 1 (default: skip)")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="bfloat16", help="(default: bfloat16)")
    parser.add_argument("--batch", type=int, default=2, help="photos per step (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="steps that are timed (default: 3)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of the other device (default: 989, an H200)")
    options = parser.parse_args(arguments)
    try:
        if min(options.batch, options.rounds) < 1 or options.peak <= 0:
            raise ValueError("--batch, --rounds and --peak must be positive")
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device {options.device}: torch sees no GPU here")
        device = torch.device(options.device)
        config = replace(RECIPES["paper"], model=preset(options.preset), precision=options.precision)
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    model = SkipClick(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = Objective(model, config)
    batch = random_batch(options.batch, config.augment.crop, device)
    numbers = range(config.max_num_next_clicks + 1)
    costs = [step_cost(objective, batch, n, options.rounds) for n in tqdm(numbers, unit="kind of step", disable=None)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"a CPU, {torch.get_num_threads()} threads"
    rate = matmul_rate(device.type, options.precision)
    print(report(config, options.batch, costs, rate, name, options.peak))
    return 0


if __name__ == "__main__":
    sys.exit(main())
