"""`python -m train fit | validate | export`: from a folder of photos with masks to a checkpoint that is served."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench.datasets import open_dataset
from bench.evaluation import Rules
from bench.runner import Workers, collect, plan, run_task
from bench.tables import report
from skipclick.checkpoint import save_checkpoint
from skipclick.predictor import DTYPES
from train.config import RECIPES, TrainConfig
from train.dataset import is_held_out
from train.fit import fit, read_state, trained_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line on standard error where the input is at fault."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ValueError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    fit_parser = commands.add_parser(
        "fit", help="train a model", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    fit_parser.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/ (instance ids)")
    fit_parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and the log")
    fit_parser.add_argument(
        "--recipe", choices=sorted(RECIPES), default="paper", help="named settings (train/config.py)"
    )
    fit_parser.add_argument("--steps", type=int, help="optimisation steps, instead of the recipe's")
    fit_parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    fit_parser.add_argument("--batch-size", type=int, help="photos per step, instead of the recipe's")
    fit_parser.add_argument("--crop", type=int, help="side of the training view in pixels, instead of the recipe's")
    fit_parser.add_argument("--seed", type=int, help="instead of the recipe's")
    fit_parser.add_argument("--init", type=Path, help="training checkpoint whose weights to start from")
    fit_parser.add_argument("--resume", action="store_true", help="continue the run in --output exactly")
    fit_parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    fit_parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples")
    fit_parser.add_argument("--threads", type=int, default=1, help="threads of the network on the CPU")
    fit_parser.set_defaults(run=_fit)
    export = commands.add_parser("export", help="write the checkpoint that the backend serves")
    export.add_argument("state", type=Path, help="a run's last.pt")
    export.add_argument("out", type=Path, help="the .safetensors to write")
    export.add_argument("--version", default="skipclick", help="name shown with every prediction")
    export.set_defaults(run=_export)
    validate = commands.add_parser("validate", help="NoC of a checkpoint on the photos that training holds out")
    validate.add_argument("checkpoint", help="'bundled' or a checkpoint file")
    validate.add_argument("--data", type=Path, required=True, help="the folder that was trained on")
    validate.add_argument("--limit", type=int, help="only the first held-out photos")
    validate.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    validate.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="(default: float32)")
    validate.set_defaults(run=_validate)
    return parser


def _fit(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    config = _overridden(RECIPES[options.recipe], options)
    last = fit(
        config,
        options.data,
        options.output,
        device=torch.device(options.device),
        num_workers=options.workers,
        init=options.init,
        resume=options.resume,
    )
    print(f"saved {last}")


def _overridden(config: TrainConfig, options: argparse.Namespace) -> TrainConfig:
    names = ("steps", "learning_rate", "batch_size", "seed")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.crop is not None:
        given["augment"] = replace(config.augment, crop=options.crop)
    return replace(config, **given)


def _export(options: argparse.Namespace) -> None:
    state = read_state(options.state)
    config = json.loads(state["config"])
    provenance = {"steps": state["step"], "training": {k: v for k, v in config.items() if k != "model"}}
    save_checkpoint(trained_model(state), options.out, version=options.version, provenance=provenance, half=True)
    print(f"saved {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")


def _validate(options: argparse.Namespace) -> None:
    dataset = open_dataset("folder", options.data, options.limit, keep=is_held_out)
    tasks = plan([options.checkpoint], [dataset], Rules(flip=False), device=options.device, dtype=options.dtype)
    measurements = [run_task(task, Workers()).measurement for task in tasks]
    print(report(collect(tasks, measurements, sys.argv[1:], datetime.now(UTC).isoformat(timespec="seconds"))))


if __name__ == "__main__":
    sys.exit(main())
