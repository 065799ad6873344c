"""Protects zoom-in in the real Label Studio: a small object in a 12-megapixel photo is cut out in three clicks.

The photo is put together of two of the check set: a cup on its saucer, 300 pixels wide, in a landscape of 4000. The
network sees 24 pixels of it in the whole photo. The same clicks at a server without zoom-in are the comparison.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.label_studio.labeling_config import EXAMPLE

from .browser import editor
from .label_studio import LabelStudio
from .masks import brush_alpha
from .processes import OUTPUT, backend

pytestmark = pytest.mark.e2e

CHECK_SET = Path(__file__).parents[2] / "skipclick" / "evaluation" / "check_set"
OBJECT_IDS = (1, 2, 3)  # of the mask of coffee.jpg: saucer, cup and spoon
IGNORED_ID = 128  # their borders
SIZE = (4000, 3000)
PLACE = (2300, 1700)  # of coffee.jpg in the large photo, (x, y)
CLICKS = [(216, 82, True), (90, 180, True), (400, 150, False)]  # in coffee.jpg: the cup, its saucer, the table
HOTKEY = "2"  # of the smart label: Label Studio numbers the labels from the top
IOU_REQUIRED = 0.75  # after three clicks


def draw_large_photo(path: Path) -> None:
    with Image.open(CHECK_SET / "images" / "china.jpg") as landscape, coffee("images/coffee.jpg") as cup:
        large = landscape.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
        large.paste(cup.convert("RGB"), PLACE)
    large.save(path, quality=92)


def coffee(name: str) -> Image.Image:
    return Image.open(CHECK_SET / name)


def iou(region: dict[str, dict[str, str]]) -> float:
    """Of a brush region with the object, where it is known."""
    mask = brush_alpha(region["value"]["rle"], SIZE[1], SIZE[0]) > 0
    ids = np.zeros(SIZE[::-1], np.uint8)
    with coffee("masks/coffee.png") as drawn:
        width, height = drawn.size
        ids[PLACE[1] : PLACE[1] + height, PLACE[0] : PLACE[0] + width] = np.array(drawn)
    expected, known = np.isin(ids, OBJECT_IDS), ids != IGNORED_ID
    return float((mask & expected & known).sum() / ((mask | expected) & known).sum())


def ious_of_clicks(studio: LabelStudio, key: str, zoom: str, photo: Path) -> list[float]:
    """After each click of an annotator at a server with this setting of ZOOM."""
    settings = {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": key, "FINETUNE": "off", "ZOOM": zoom}
    settings["MODEL_DIR"] = str(OUTPUT / f"models-zoom-{zoom}")
    ious = []
    with backend(OUTPUT / f"backend-zoom-{zoom}.log", settings) as url, editor(studio.url, OUTPUT) as window:
        project = studio.create_project(f"Small object, ZOOM={zoom}", EXAMPLE)
        studio.connect_backend(project, url)
        window.open_task(project, studio.upload(project, photo))
        window.prepare_clicks()
        for number, (x, y, positive) in enumerate(CLICKS, 1):
            place = (PLACE[0] + x + 0.5) / SIZE[0], (PLACE[1] + y + 0.5) / SIZE[1]
            answer = window.click(*place, HOTKEY, positive)
            window.picture(f"small-object-{zoom}-{number}")
            (region,) = (item for item in answer.reply["data"]["result"] if item["type"] == "brushlabels")
            ious.append(iou(region))
    return ious


def test_a_small_object_is_cut_out_after_three_clicks(studio: LabelStudio, api_key: str, tmp_path: Path) -> None:
    photo = tmp_path / "large.jpg"
    draw_large_photo(photo)
    ious = {zoom: ious_of_clicks(studio, api_key, zoom, photo) for zoom in ("auto", "off")}
    for zoom, curve in ious.items():
        print(f"ZOOM={zoom}: IoU with the object after each click:", ", ".join(f"{iou:.3f}" for iou in curve))
    assert ious["auto"][-1] >= IOU_REQUIRED
    assert ious["auto"][-1] > ious["off"][-1]
