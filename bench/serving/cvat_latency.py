"""A click from CVAT beside the same click from Label Studio, over HTTP, on the same server in turn.

    OMP_NUM_THREADS=2 python bench/serving/cvat_latency.py                  20 clicks each on a photo of 2.9 MB

CVAT sends the picture with every click, Label Studio a reference to one that the server has seen. A server of its own
is started with this process's settings. The photo is looked at before, so each click is one on known features, and
each is on another place, so nothing is answered from memory. Prints median and 95th percentile in milliseconds.
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from collections.abc import Sequence

import orjson
import requests

from bench.cli import CommandParser, image_size
from bench.serving.annotators import Request, drawn_photo
from bench.serving.load import image_server, jpeg, predict_body, spawned_server
from bench.serving.loopback import exit_on_signals, local_session
from skipclick import Click
from skipclick.evaluation.option_types import positive
from skipclick.evaluation.timing import MedianP95

HEADERS = {"Content-Type": "application/json"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for wrong options."""
    options = _parser().parse_args(arguments)
    exit_on_signals()
    size: tuple[int, int] = options.size
    photo = jpeg(drawn_photo(0, size))
    body = {"image": base64.b64encode(photo).decode(), "neg_points": [], "obj_bbox": []}
    clicks = [Click(size[1] * (0.2 + 0.6 * i / options.clicks), size[0] / 2) for i in range(options.clicks + 1)]
    times: dict[str, list[float]] = {"CVAT": [], "Label Studio": []}
    with (
        image_server({"/photo.jpg": photo}) as images,
        spawned_server(images, {"CVAT": "on"}) as server,
        local_session() as http,
    ):
        for number, click in enumerate(clicks):
            asked = orjson.dumps(predict_body(Request(0, (click,)), f"{images}/photo.jpg", size))
            sent = orjson.dumps(body | {"pos_points": [[click.x, click.y + 20]]})
            calls = {"Label Studio": (f"{server}/predict", asked), "CVAT": (f"{server}/api/function_invocations", sent)}
            for tool, (url, content) in calls.items():
                taken = _milliseconds(http, url, content)
                if number:  # the first ones encode
                    times[tool].append(taken)
    print(f"a photo of {size[1]} x {size[0]} pixels, {len(photo) / 1e6:.1f} MB; {options.clicks} clicks each")
    print(f"{'':<13}median / p95 in ms")
    for tool, found in times.items():
        print(f"{tool:<13}{MedianP95.of(found)}")
    return 0


def _milliseconds(http: requests.Session, url: str, body: bytes) -> float:
    begin = time.perf_counter()
    answer = http.post(url, data=body, headers=HEADERS, timeout=100)
    taken = (time.perf_counter() - begin) * 1000
    answer.raise_for_status()
    return taken


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="cvat_latency", description=__doc__)
    parser.add_argument("--clicks", type=positive, default=20, help="of each tool (default: %(default)s)")
    parser.add_argument(
        "--size", type=image_size, default=(3000, 4000), help="of the photo, WIDTHxHEIGHT (default: 4000x3000)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
