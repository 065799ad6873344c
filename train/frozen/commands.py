"""The commands of `python -m train` that train a head alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from skipclick import Predictor, load_checkpoint
from skipclick.checkpoint import save_checkpoint
from train.augment import AugmentConfig, augment
from train.config import BACKBONES, TrainConfig, with_network
from train.frozen.encode import encode_views
from train.frozen.fit import HeadConfig, HeadRun, calibrate, fit_head, read_head, trained_head
from train.frozen.refit import refit_head
from train.init_weights import backbone_origin, new_model
from train.losses import LOSSES
from train.sources import open_sources

Commands = Any  # argparse keeps the type of `add_subparsers` to itself
BACKBONE = f"{', '.join(name for name in BACKBONES if 'efficientnet' in name)}, or a checkpoint"


def add_commands(commands: Commands, sources: dict[str, Any]) -> None:
    """Add the commands. sources: the keyword arguments of `--data`, as in the other commands."""
    encode = commands.add_parser("encode-views", help="encode views of photos once, to train the head alone")
    encode.add_argument("--data", **sources)
    encode.add_argument("--backbone", required=True, metavar="NAME|CHECKPOINT", help=BACKBONE)
    encode.add_argument("--output", type=Path, required=True, help="folder for the views; existing ones stay")
    encode.add_argument("--views", type=int, required=True, metavar="N", help="number of views")
    encode.add_argument("--crop", type=int, required=True, metavar="PIXELS", help="side of the views")
    encode.add_argument("--split", choices=("train", "held_out"), default="train", help="(default: train)")
    encode.add_argument(
        "--kind-weights",
        nargs="+",
        type=_weight,
        default=[],
        metavar="KIND=WEIGHT",
        help="how often to draw photos of a kind, see a folder's index.csv (default: 1)",
    )
    encode.add_argument(
        "--first-look",
        default="bundled",
        metavar="CHECKPOINT",
        help="model that answers before zoom-in (default: bundled)",
    )
    encode.add_argument("--seed", type=int, default=0, help="(default: 0)")
    _add_threads(encode)
    encode.set_defaults(run=_encode)

    refit = commands.add_parser("refit-head", help="put another model's head on a backbone, by least squares")
    refit.add_argument("--data", **sources)
    refit.add_argument("--backbone", required=True, metavar="NAME|CHECKPOINT", help=BACKBONE)
    refit.add_argument("--head", required=True, metavar="CHECKPOINT", help="'bundled' or a checkpoint file")
    refit.add_argument("--photos", type=int, default=250, metavar="N", help="photos to fit on (default: 250)")
    refit.add_argument("--seed", type=int, default=0, help="(default: 0)")
    refit.add_argument("out", type=Path, help="the .safetensors to write, for `fit-head --init`")
    _add_threads(refit)
    refit.set_defaults(run=_refit)

    fit = commands.add_parser("fit-head", help="train the head alone, on encoded views")
    fit.add_argument("--views", type=Path, required=True, help="folder that encode-views writes, or is writing")
    fit.add_argument("--held-out", type=Path, metavar="VIEWS", help="views of held-out photos, to evaluate on")
    fit.add_argument("--output", type=Path, required=True, help="the run's folder: head.pt, log.jsonl")
    start = fit.add_mutually_exclusive_group(required=True)
    start.add_argument("--init", metavar="CHECKPOINT", help="backbone and head to start from")
    start.add_argument("--backbone", metavar="NAME|CHECKPOINT", help=f"{BACKBONE}: with a fresh head, or --resume")
    fit.add_argument("--resume", type=Path, metavar="HEAD.pt", help="checkpoint of the training to continue")
    default = HeadConfig()
    fit.add_argument(
        "--steps", type=int, default=default.steps, help=f"total number of steps (default: {default.steps})"
    )
    fit.add_argument("--batch-size", type=int, default=default.batch_size, help=f"(default: {default.batch_size})")
    fit.add_argument("--learning-rate", type=float, default=default.learning_rate, help="(default: 5e-4)")
    fit.add_argument(
        "--decay-steps",
        type=int,
        default=default.decay_steps,
        metavar="N",
        help="let the learning rate fall in the last N steps",
    )
    fit.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default=default.dtype,
        help=f"of matrix products (default: {default.dtype})",
    )
    fit.add_argument("--ema-decay", type=float, default=default.ema_decay, help=f"(default: {default.ema_decay})")
    fit.add_argument("--loss", choices=sorted(LOSSES), default=default.loss, help=f"(default: {default.loss})")
    fit.add_argument("--seed", type=int, default=default.seed, help="(default: 0)")
    fit.add_argument("--measure-every", type=int, default=1000, metavar="STEPS", help="(default: 1000)")
    _add_threads(fit)
    fit.set_defaults(run=_fit)

    export = commands.add_parser("export-head", help="write the checkpoint that the backend serves, from head.pt")
    export.add_argument("head", type=Path, help="a head.pt of fit-head; its averaged weights are used")
    export.add_argument("out", type=Path, help="the .safetensors to write")
    export.add_argument("--backbone", required=True, metavar="NAME|CHECKPOINT", help=BACKBONE)
    export.add_argument(
        "--resolution", type=int, metavar="PIXELS", help="resolution to serve it at (default: the model's)"
    )
    export.add_argument("--version", default="skipclick", help="name shown with every prediction")
    export.add_argument("--float32", action="store_true", help="keep matrices in float32 (default: float16)")
    export.set_defaults(run=_export)


def _add_threads(command: argparse.ArgumentParser) -> None:
    command.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the network (default: 1)")


def _weight(text: str) -> tuple[str, float]:
    kind, separator, weight = text.partition("=")
    try:
        value = float(weight)
    except ValueError:
        value = -1.0
    if not separator or not kind or not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND=WEIGHT")
    return kind, value


def _network(backbone: str) -> TrainConfig:
    return with_network(TrainConfig(), backbone)


def _encode(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    with tqdm(total=options.views, unit="views") as bar:

        def on_progress(number: int) -> None:
            bar.update(number - bar.n)

        encode_views(
            new_model(_network(options.backbone)),
            options.data,
            options.output,
            crop=options.crop,
            num_views=options.views,
            first_look=Predictor(load_checkpoint(options.first_look)),
            kind_weights=dict(options.kind_weights),
            split=options.split,
            seed=options.seed,
            on_progress=on_progress,
        )


def _refit(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    donor, config = load_checkpoint(options.head), _network(options.backbone)
    model = new_model(config).eval()
    photos = [photo for source in open_sources(options.data).parts for photo in source.photos]

    def images() -> Iterator[Tensor]:
        for number in tqdm(range(options.photos), unit="photos"):
            rng = np.random.default_rng((options.seed, number))
            image, scene = photos[int(rng.integers(len(photos)))].load()
            crop = donor.config.resolution[0]
            image, _ = augment(image, scene, AugmentConfig(crop=crop, view="window"), rng)
            yield torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255

    explained = refit_head(model, donor, images())
    provenance = {"backbone": backbone_origin(config), "head": donor.version, "explained": explained}
    save_checkpoint(model, options.out, version=f"{donor.version} refit", provenance=provenance)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in explained.items())
    print(f"saved {options.out}; variance explained by the new layers: {shares}")


def _fit(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    names = ("steps", "batch_size", "learning_rate", "decay_steps", "ema_decay", "loss", "dtype", "seed")
    config = HeadConfig(**{name: getattr(options, name) for name in names})
    torch.manual_seed(config.seed)  # of a fresh head's first weights
    model = load_checkpoint(options.init) if options.init else new_model(_network(options.backbone)).eval()
    if options.init is None and options.resume is None:
        calibrate(model, options.views, config.batch_size, config.seed)
    run = HeadRun(
        views=options.views,
        output=options.output,
        held_out=options.held_out,
        measure_every=options.measure_every,
        command=("python", "-m", "train", *(Path(word).name for word in sys.argv[1:])),
    )
    print(f"saved {fit_head(model, run, config, options.resume)}")


def _export(options: argparse.Namespace) -> None:
    saved = read_head(options.head)
    config = _network(options.backbone)
    model = trained_head(saved, new_model(config))
    if options.resolution:
        model.config = replace(model.config, resolution=(options.resolution, options.resolution))
    origin = backbone_origin(config)
    provenance = {"backbone": origin, "steps": saved["step"], "objects": saved["drawn"], "runs": saved["history"]}
    save_checkpoint(model, options.out, version=options.version, provenance=provenance, half=not options.float32)
    print(f"saved {options.out}")
