"""Protects the shell commands: a mask and a picture from a real photo, one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from skipclick import Predictor, load_checkpoint
from skipclick.__main__ import main
from skipclick.checkpoint import save_checkpoint
from skipclick.drawing import NEGATIVE_COLOUR, POSITIVE_COLOUR, draw_overlay
from skipclick.model import SkipClick
from skipclick.openvino_runtime import find_graphs, graphs_folder
from skipclick.prompts import Click
from tests.support.picture_files import app1, exif, with_segments
from tests.support.small_models import SMALL

PHOTO = Path(__file__).parents[1] / "e2e" / "photos" / "coffee.jpg"  # 600 x 400; see SOURCE.md there
ON_THE_COFFEE, ON_THE_TABLE = "290,150", "40,360"


def test_segment_writes_a_mask_and_an_overlay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask_path, overlay_path = tmp_path / "mask.png", tmp_path / "overlay.png"
    command = ["segment", str(PHOTO), "--positive", ON_THE_COFFEE, "--negative", ON_THE_TABLE]
    assert main([*command, "-o", str(mask_path), "--overlay", str(overlay_path)]) == 0
    assert "skipclick-lite" in capsys.readouterr().out
    mask = cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (400, 600)
    assert set(np.unique(mask)) <= {0, 255}
    assert mask[150, 290] == 255
    assert mask[360, 40] == 0
    assert cv2.imread(str(overlay_path)).shape == (400, 600, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.png", "overlay.png"]


def test_segment_looks_closer_unless_told_not_to(tmp_path: Path) -> None:
    """Without zoom-in the mask is the released protocol's, which the first click always gives."""
    image = cv2.imread(str(PHOTO), cv2.IMREAD_COLOR_RGB)
    small = np.full((1200, 1800, 3), 120, np.uint8)
    small[700:820, 1000:1180] = cv2.resize(image, (180, 120), interpolation=cv2.INTER_AREA)
    photo = tmp_path / "small.png"
    cv2.imwrite(str(photo), cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    predictor = Predictor(load_checkpoint("bundled"))
    features = predictor.encode(small)
    clicks, probability = [Click(1087, 745), Click(1080, 752)], None
    for count in (1, 2):
        probability = predictor.click(features, clicks[:count], probability)
    assert probability is not None
    masks = {}
    for name, options in {"zoom": [], "whole": ["--no-zoom"]}.items():
        path = tmp_path / f"{name}.png"
        points = [option for click in clicks for option in ("--positive", f"{click.x},{click.y}")]
        assert main(["segment", str(photo), *points, *options, "--min-part", "0", "-o", str(path)]) == 0
        masks[name] = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 0
    np.testing.assert_array_equal(masks["whole"], probability > 0.5)
    assert (masks["zoom"] != masks["whole"]).any()


def test_compile_leaves_graphs_beside_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, checkpoint = SkipClick(SMALL).eval(), tmp_path / "small.safetensors"
    save_checkpoint(model, checkpoint, version="small")
    assert main(["compile", str(checkpoint), "--resolution", "56"]) == 0
    encode, decode = find_graphs(load_checkpoint(checkpoint), (56, 56), (graphs_folder(checkpoint),))
    assert (encode.name, decode.name) == ("encode.xml", "decode.xml")
    assert str(encode.parent) in capsys.readouterr().out
    assert main(["compile", str(checkpoint), "--resolution", "57"]) == 2
    assert "multiples of 14" in capsys.readouterr().err


@pytest.mark.parametrize("zoom", ["--zoom", "--no-zoom"])
def test_segment_corrects_a_mask(tmp_path: Path, zoom: str) -> None:
    """The cup with a piece of the saucer: a negative click alone takes that away and keeps the cup."""
    start = np.zeros((400, 600), np.uint8)
    cv2.ellipse(start, (290, 150), (110, 120), 0, 0, 360, 255, -1)
    start[240:290, 330:480] = 255
    cv2.imwrite(str(tmp_path / "start.png"), start)
    command = ["segment", str(PHOTO), "--negative", "430,265", "--start", str(tmp_path / "start.png"), zoom]
    assert main([*command, "-o", str(tmp_path / "mask.png")]) == 0
    mask = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask[265, 430] == 0
    assert mask[150, 290] == 255
    assert (mask[start > 0] > 0).mean() > 0.5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([str(PHOTO)], "at least one --positive"),
        ([str(PHOTO), "--positive", "900,10"], "outside the image"),
        (["nothing.jpg", "--positive", "1,1"], "nothing.jpg"),
        ([str(PHOTO), "--positive", "1,1", "--resolution", "333"], "multiples of"),
        ([str(PHOTO), "--positive", "1,1", "--checkpoint", "none.pth"], "does not exist"),
        ([str(PHOTO), "--positive", "1,1", "--min-part", "7"], "not a share of the mask"),
        ([str(PHOTO), "--negative", "1,1", "--start", "none.png"], "none.png"),
        ([str(PHOTO), "--negative", "1,1", "--start", str(PHOTO)], "cannot be decoded"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", *arguments, "-o", str(tmp_path / "mask.png")]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_photo_is_seen_as_a_browser_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = PHOTO.read_bytes()
    turned = tmp_path / "turned.jpg"
    turned.write_bytes(with_segments(whole, app1(exif(6))))
    mask_path = tmp_path / "mask.png"
    assert main(["segment", str(turned), "--positive", "200,300", "-o", str(mask_path)]) == 0
    assert cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED).shape == (600, 400)
    turned.write_bytes(whole[:300])
    assert main(["segment", str(turned), "--positive", "200,300", "-o", str(mask_path)]) == 2
    assert "turned.jpg: " in (message := capsys.readouterr().err)
    assert "cut off after 300 bytes" in message


def test_a_click_that_cannot_be_read_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["segment", str(PHOTO), "--positive", "12;40", "-o", "mask.png"])
    assert ended.value.code == 2
    assert "write X,Y" in capsys.readouterr().err


def test_info_shows_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "bundled"]) == 0
    assert '"kind": "convnet"' in capsys.readouterr().out


def test_the_overlay_shows_mask_and_clicks_as_in_the_papers_figures() -> None:
    image = np.full((100, 100, 3), 200, np.uint8)
    mask = np.zeros((100, 100), bool)
    mask[20:60, 20:60] = True
    drawn = draw_overlay(image, mask, [Click(30, 40), Click(80, 80, positive=False)])
    assert tuple(drawn[40, 30]) == POSITIVE_COLOUR
    assert tuple(drawn[80, 80]) == NEGATIVE_COLOUR
    blue = drawn[50, 50].astype(int)
    assert blue[2] > blue[0] + 50
    assert (drawn[95, 5] == 200).all()
    assert (image == 200).all()  # a new array, the photo is left alone
