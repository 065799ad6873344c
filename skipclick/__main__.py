"""`skipclick segment | convert | compile | info`: masks from the shell, and conversion of checkpoints."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from skipclick import bitmask
from skipclick.atomic_io import atomic_write
from skipclick.checkpoint import load_checkpoint, save_checkpoint
from skipclick.cleaning import clean
from skipclick.drawing import draw_overlay
from skipclick.features import ImageFeatures
from skipclick.image_file import ImageError, decode
from skipclick.masks import MASK_THRESHOLD, BoxMask
from skipclick.openvino_runtime import compile_model, graphs_folder
from skipclick.predictor import DTYPES, RUNTIMES, Predictor
from skipclick.prompts import Click
from skipclick.simulation import correcting_clicks
from skipclick.zoom import crop_encoder, predict_zoomed, start_zoomed, zoom_request


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line on standard error for wrong input."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"skipclick: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skipclick", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    segment = commands.add_parser(
        "segment",
        help="segment an object in a photo from clicks",
        description="Clicks are X,Y in pixels of the photo, x to the right and y down, in the order they are given.",
    )
    segment.add_argument("photo", type=Path)
    for name, positive in (("--positive", True), ("--negative", False)):
        segment.add_argument(
            name,
            metavar="X,Y",
            dest="clicks",
            action="append",
            type=_positive_click if positive else _negative_click,
            help=f"a click on {'the object' if positive else 'what is wrongly in the mask'}; may be repeated",
        )
    segment.add_argument(
        "--start", type=Path, metavar="MASK.png", help="mask of the photo, white on black, for the clicks to correct"
    )
    segment.add_argument("-o", "--output", type=Path, required=True, help="where to write the mask, a PNG of 0 and 255")
    segment.add_argument("--overlay", type=Path, help="where to write the photo with the mask and clicks drawn on it")
    segment.add_argument("--checkpoint", default="bundled", help="'bundled' or a checkpoint file (default: bundled)")
    _add_resolution(segment)
    segment.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    segment.add_argument("--runtime", choices=RUNTIMES, default="torch", help="(default: torch)")
    segment.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="(default: float32)")
    segment.add_argument(
        "--zoom",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="from the second click on, use a crop around the object (default: yes)",
    )
    segment.add_argument(
        "--min-part",
        type=float,
        default=0.001,
        metavar="SHARE",
        help="remove islands and fill holes smaller than this share of the mask, unless clicked on (default: 0.001)",
    )
    segment.set_defaults(run=_segment)
    convert = commands.add_parser("convert", help="write the authors' released .pth as .safetensors")
    convert.add_argument("released", type=Path)
    convert.add_argument("out", type=Path)
    convert.set_defaults(run=_convert)
    compiled = commands.add_parser(
        "compile",
        help="convert a checkpoint to OpenVINO graphs",
        description="Servers look for the graphs beside the checkpoint. They are valid for one resolution and one "
        "version of OpenVINO; a server that finds none makes its own when it first starts.",
    )
    compiled.add_argument("checkpoint", help="'bundled' or a checkpoint file")
    compiled.add_argument("out", type=Path, nargs="?", help="folder (default: beside the checkpoint)")
    _add_resolution(compiled)
    compiled.set_defaults(run=_compile)
    info = commands.add_parser("info", help="show what a checkpoint contains")
    info.add_argument("checkpoint", help="'bundled' or a checkpoint file")
    info.set_defaults(run=_info)
    return parser


def _add_resolution(command: argparse.ArgumentParser) -> None:
    command.add_argument("--resolution", type=int, help="side in pixels of the network's input (default: the model's)")


def _positive_click(text: str) -> Click:
    return _parse_click(text, positive=True)


def _negative_click(text: str) -> Click:
    return _parse_click(text, positive=False)


def _parse_click(text: str, positive: bool) -> Click:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a click; write X,Y such as 120,80") from None
    return Click(x, y, positive)


def _segment(options: argparse.Namespace) -> None:
    if not options.clicks:
        raise ValueError("no clicks; give at least one --positive X,Y")
    if not 0 <= options.min_part < 1:
        raise ValueError(
            f"--min-part {options.min_part} is not a share of the mask; give a number from 0 to 1, such as 0.001"
        )
    image = _read_photo(options.photo)
    start_mask = bitmask.read_file(options.start, (image.shape[0], image.shape[1])) if options.start else None
    resolution = (options.resolution, options.resolution) if options.resolution else None
    predictor = Predictor(
        load_checkpoint(options.checkpoint),
        resolution,
        options.device,
        options.dtype,
        runtime=options.runtime,
        graphs=(graphs_folder(options.checkpoint),),
    )
    begun = time.perf_counter()
    features = predictor.encode(image)
    encoded = time.perf_counter()
    predict = _zoomed_mask if options.zoom else _mask
    clicks = options.clicks if start_mask is None else correcting_clicks(start_mask, options.clicks)
    mask = predict(predictor, image, features, clicks, start_mask)
    mask = clean(BoxMask.of(mask), options.clicks, options.min_part).full()
    clicked = time.perf_counter()
    _write_png(options.output, mask.astype(np.uint8) * 255)
    if options.overlay:
        _write_png(options.overlay, cv2.cvtColor(draw_overlay(image, mask, options.clicks), cv2.COLOR_RGB2BGR))
    print(
        f"{options.output}: {mask.mean():.1%} of the photo; encode {1e3 * (encoded - begun):.0f} ms, "
        f"{1e3 * (clicked - encoded) / len(options.clicks):.0f} ms per click, {predictor.version}"
    )


def _mask(
    predictor: Predictor,
    image: NDArray[np.uint8],
    features: ImageFeatures,
    clicks: Sequence[Click],
    start: NDArray[np.bool_] | None,
) -> NDArray[np.bool_]:
    """The mask, bool (H, W), by the released protocol; the clicks are given one after the other, as by an annotator."""
    probability = None if start is None else start.astype(np.float32)
    for count in range(1, len(clicks) + 1):
        probability = predictor.click(features, clicks[:count], probability)
    assert probability is not None
    mask: NDArray[np.bool_] = probability > MASK_THRESHOLD
    return mask


def _zoomed_mask(
    predictor: Predictor,
    image: NDArray[np.uint8],
    features: ImageFeatures,
    clicks: Sequence[Click],
    start: NDArray[np.bool_] | None,
) -> NDArray[np.bool_]:
    """The same with zoom-in, as in the backend."""
    encode_crop = crop_encoder(predictor, image)
    state, answer = None if start is None else start_zoomed(predictor, start), None
    for count in range(1, len(clicks) + 1):
        (answer,) = predict_zoomed(predictor, [zoom_request(features, clicks[:count], state, encode_crop)])
        state = answer.state
    assert answer is not None
    return answer.mask.full()


def _read_photo(path: Path) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        try:
            return decode(file).pixels
        except ImageError as error:
            raise ValueError(f"{path}: {error}") from None


def _write_png(path: Path, image: NDArray[Any]) -> None:
    encoded, data = cv2.imencode(".png", image)
    assert encoded
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _convert(options: argparse.Namespace) -> None:
    model = load_checkpoint(options.released)
    save_checkpoint(model, options.out, version=model.version, provenance={"converted_from": options.released.name})
    print(f"saved {options.out} ({options.out.stat().st_size / 1e6:.0f} MB)")


def _compile(options: argparse.Namespace) -> None:
    model = load_checkpoint(options.checkpoint)
    resolution = model.config.checked_resolution((options.resolution,) * 2 if options.resolution else None)
    folder = compile_model(model, resolution, options.out or graphs_folder(options.checkpoint))
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"saved {folder} ({size / 1e6:.0f} MB, {resolution[0]} x {resolution[1]} pixels)")


def _info(options: argparse.Namespace) -> None:
    model = load_checkpoint(options.checkpoint)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{model.version}: {num_parameters / 1e6:.1f} million parameters")
    print(json.dumps(model.config.to_dict(), indent=2))


if __name__ == "__main__":
    sys.exit(main())
