"""Protects the putting together: settings to a running annotator with the bundled model, and the start-up lines."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.device import choose_device
from backend.factory import build_service
from backend.settings import Settings
from backend.web.app import create_app
from skipclick import __version__, brush_rle
from tests.support.recorded import clicked_bodies


def turned_photo() -> str:
    """A data URI of a JPEG stored as 160 x 120 that viewers show as 120 x 160: a bright disc on a dark ground."""
    rows, columns = np.mgrid[:120, :160]
    pixels = np.full((120, 160, 3), 40, np.uint8)
    pixels[(rows - 60) ** 2 + (columns - 40) ** 2 < 30**2] = 230, 200, 60
    exif, file = Image.Exif(), BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def test_a_click_on_a_turned_photo_with_the_bundled_model() -> None:
    annotator = build_service(Settings(device="cpu", runtime="torch", dtype="float32")).annotator
    client = create_app(Settings(), annotator).test_client()
    body: dict[str, Any] = clicked_bodies("33")[0]
    body["tasks"][0]["data"]["image"] = turned_photo()
    click = body["params"]["context"]["result"][0]["value"]
    click |= {"x": 50, "y": 25}  # stored (40, 60), a quarter turn clockwise: shown (59, 40) of 120 x 160
    answer = client.post("/predict", json=body)
    annotator.close()
    assert answer.status_code == 200
    assert answer.json["results"][0]["model_version"] == annotator.version
    (region,) = answer.json["results"][0]["result"]
    mask = brush_rle.decode(region["value"]["rle"], 160, 120) > 0
    rows, columns = np.mgrid[:160, :120]
    disc = (rows - 40) ** 2 + (columns - 59) ** 2 < 30**2
    assert mask[40, 59]
    assert (mask & disc).sum() > 0.7 * mask.sum()


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda")
    with pytest.raises(ValueError, match="DEVICE=cuda:99, but torch finds"):
        choose_device("cuda:99")


def test_the_start_up_line_says_what_runs_and_no_secret() -> None:
    settings = Settings(
        device="cpu", runtime="torch", dtype="float32", resolution=(320, 448), label_studio_api_key="secret"
    )
    service = build_service(settings)
    service.annotator.close()
    line = service.describe(settings)
    for part in (
        f"SkipClick backend {__version__}",
        "device cpu",
        "runtime torch",
        "dtype float32",
        "checkpoint bundled (skipclick-lite)",
        "resolution 320x448",
        "device 1GB",
        "memo 512MB",
        "Label Studio http://localhost:8080",
    ):
        assert part in line
    assert "\n" not in line
    assert "secret" not in line
