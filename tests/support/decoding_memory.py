"""What decoding takes of memory, measured in a process of its own: what other tests hold, or left free, would count.

`python -m tests.support.decoding_memory` prints it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.images.memory_budget import return_free_memory
from skipclick import image_file
from skipclick.image_file import decode

ENOUGH = (None, 300)
"""Sides in pixels that are enough of a photo; None for all of it."""


def ramp(channels: int, top: int, dtype: type = np.uint8) -> NDArray[Any]:
    """Values below `top` that compress, but not to nothing: (1500, 2000) or (1500, 2000, channels)."""
    values = (np.add.outer(np.arange(1500), 3 * np.arange(2000)) % top).astype(dtype)
    return np.dstack([values] * channels) if channels > 1 else values


def written(pixels: NDArray[Any], format: str, mode: str | None = None, **options: Any) -> bytes:
    file = BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(file, format, **options)
    return file.getvalue()


def written_by_opencv(name: str, pixels: NDArray[Any]) -> bytes:
    return cv2.imencode(name, pixels)[1].tobytes()


KINDS = {
    "JPEG": lambda: written(ramp(3, 256), "JPEG"),
    "progressive JPEG": lambda: written(ramp(3, 256), "JPEG", progressive=True, subsampling=0),
    "progressive JPEG in CMYK": lambda: written(ramp(3, 256), "JPEG", "CMYK", progressive=True),
    "PNG": lambda: written(ramp(3, 256), "PNG", compress_level=1),
    "PNG with transparency": lambda: written(ramp(4, 256), "PNG", compress_level=1),
    "PNG with a transparent colour": lambda: written(ramp(3, 256), "PNG", transparency=(1, 1, 1)),
    "PNG with a palette": lambda: written(ramp(1, 256), "PNG", "P", transparency=3),
    "PNG of one bit": lambda: written(ramp(1, 256), "PNG", "1"),
    "gray PNG of 16 bits": lambda: written(ramp(1, 60_000, np.uint16), "PNG"),
    "PNG of 16 bits": lambda: written_by_opencv(".png", ramp(3, 60_000, np.uint16)),
    "PNG of 12 bits": lambda: written_by_opencv(".png", ramp(3, 4000, np.uint16)),
    "PNG of 12 bits with transparency": lambda: written_by_opencv(".png", ramp(4, 4000, np.uint16)),
    "WebP": lambda: written(ramp(4, 256), "WEBP", lossless=True, quality=0, method=0),
    "AVIF": lambda: written(ramp(4, 256), "AVIF", speed=10, subsampling="4:4:4"),
    "GIF": lambda: written(ramp(1, 256), "GIF", "P"),
    "BMP": lambda: written(ramp(3, 256), "BMP"),
    "TIFF of floats": lambda: written(ramp(1, 250, np.float32), "TIFF"),
    "TIFF of one compressed strip": lambda: written(
        ramp(4, 256), "TIFF", compression="tiff_adobe_deflate", strip_size=1 << 30
    ),
    "TIFF of 16 bits": lambda: written_by_opencv(".tif", ramp(3, 60_000, np.uint16)),
    "TIFF of 12 bits": lambda: written_by_opencv(".tif", ramp(3, 4000, np.uint16)),
}
"""Files that decoders and we ourselves keep in memory in different ways, by kind."""


@cache
def measured() -> dict[str, tuple[int, int]]:
    """By kind and what is enough the bytes of memory at the peak, and how many there may be."""
    command = [sys.executable, "-m", "tests.support.decoding_memory"]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    found: dict[str, tuple[int, int]] = json.loads(run.stdout)
    return found


def _measure(kind: str, enough: int | None) -> tuple[int, int]:
    data, told = KINDS[kind](), list[int]()
    decode(BytesIO(data), enough=enough)  # libraries' own buffers are there from now on
    return_free_memory()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # from here on the peak counts
    decode(BytesIO(data), enough=enough, admit=lambda _, num_bytes: told.append(num_bytes))
    return _resident("VmHWM") - before, told[0] + len(data) + (4 << 20)


def _resident(name: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at the peak (VmHWM)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


if __name__ == "__main__":
    image_file._STRIP = 1 << 16
    print(json.dumps({f"{kind} {enough}": _measure(kind, enough) for kind in KINDS for enough in ENOUGH}))
