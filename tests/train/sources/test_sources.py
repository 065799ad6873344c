"""Protects how sources are named, recognised, mixed and held out, and that each mistake gets one clear sentence."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.support.drawn_pictures import blank, save
from tests.support.photo_folder import NUM_PHOTOS
from train.sources import KINDS, is_held_out, open_sources, parse_source


def write_folder(root: Path, names: list[str]) -> Path:
    mask = blank()
    mask[2:4, 2:5] = 1
    for name in names:
        save(root / "images" / f"{name}.png")
        save(root / "masks" / f"{name}.png", mask)
    return root


def trained_names(count: int) -> list[str]:
    return [name for name in (f"p{i}" for i in range(2 * count + 20)) if not is_held_out(name)][:count]


def test_photos_are_either_held_out_or_trained_on(photo_folder: Path) -> None:
    names = {
        split: {photo.name for photo in open_sources([str(photo_folder)], split).parts[0].photos}  # type: ignore[arg-type]
        for split in ("train", "held_out", "all")
    }
    assert names["held_out"] == {name for name in names["all"] if is_held_out(name)}
    assert names["train"] == names["all"] - names["held_out"]
    assert len(names["all"]) == NUM_PHOTOS
    assert names["held_out"]


def test_the_held_out_rule_never_moves() -> None:
    """Results on held-out photos are comparable only while this list stays as it is."""
    assert [i for i in range(100) if is_held_out(f"photo_{i}")] == [35, 40, 63, 68, 80]


def test_kinds_can_be_left_out(photo_folder: Path) -> None:
    (source,) = open_sources([str(photo_folder)], "all", exclude_kinds=["odd"]).parts
    assert {photo.name for photo in source.photos} == {f"photo{i:02}" for i in range(0, NUM_PHOTOS, 2)}
    with pytest.raises(ValueError, match="no photos of kind strange; known: even, odd"):
        open_sources([str(photo_folder)], "all", exclude_kinds=["strange"])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("/data/own", (1.0, None, "/data/own")),
        ("2*/data/own", (2.0, None, "/data/own")),
        ("0.5*coco:/data/a.json:/data/images", (0.5, "coco", "/data/a.json:/data/images")),
        ("2*coco-with-crowds:/data/a.json", (2.0, "coco-with-crowds", "/data/a.json")),
        ("label-studio:export.json", (1.0, "label-studio", "export.json")),
        ("/data/a:b", (1.0, None, "/data/a:b")),
        (".25*folder:x", (0.25, "folder", "x")),
    ],
)
def test_how_a_source_is_written(spec: str, expected: tuple[float, str | None, str]) -> None:
    weight, kind, path = parse_source(spec)
    assert (weight, kind, str(path)) == expected


def test_weights_say_how_often_each_photo_comes(tmp_path: Path) -> None:
    """Without weights all photos are alike; "3*" makes those of its source come three times as often."""
    few, many = (write_folder(tmp_path / name, trained_names(size)) for name, size in (("few", 2), ("many", 10)))
    alike, weighted = open_sources([str(few), str(many)]), open_sources([f"3*{few}", str(many)])
    assert len(alike) == 12
    assert alike.shares == pytest.approx([2 / 12, 10 / 12])
    assert weighted.shares == pytest.approx([6 / 16, 10 / 16])
    rng = np.random.default_rng(0)
    drawn = Counter(id(weighted.draw(rng)) for _ in range(4000))
    counts = [drawn[id(photo)] for source in weighted.parts for photo in source.photos]
    assert np.array(counts) / 4000 == pytest.approx([3 / 16] * 2 + [1 / 16] * 10, abs=0.03)
    assert "2 photos, 37.5% of the samples" in str(weighted)


def test_a_source_alone_spends_no_random_number(tmp_path: Path) -> None:
    sources = open_sources([f"7*{write_folder(tmp_path, trained_names(5))}"])
    for seed in range(5):
        expected = int(np.random.default_rng(seed).integers(5))
        assert sources.draw(np.random.default_rng(seed)) is sources.parts[0].photos[expected]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("{root}/nothing", "there is no folder .*/nothing; a source is"),
        ("{root}/empty", "empty holds neither images/ and masks/ nor another known source .*cocolvis, folder, hqseg"),
        ("folder:{root}/empty", "there is no folder .*/empty/images; expected images/ and masks/"),
        ("cocolvis:{root}/empty", r"there is no file .*/empty/train/hannotation\.pickle; expected train/"),
        ("coco:{root}/empty", r"needs one \.json with the annotations, found none"),
        ("hqseg-44k:{root}/empty", "there is no photo left in it; expected DIS5K/DIS-TR/im"),
        ("0*{root}/good", "a weight is above 0"),
        ("2*", r"there is no folder 2\*; a source is \[WEIGHT\*\]\[KIND:\]PATH, KIND one of cocolvis"),
        ("", "'' names no source"),
        ("{root}/broken", "cannot be read as a picture"),
    ],
)
def test_mistakes_are_named_when_the_run_starts(tmp_path: Path, spec: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "good", trained_names(2))
    for photo in (write_folder(tmp_path / "broken", trained_names(4)) / "images").iterdir():
        photo.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=reason) as error:
        open_sources([spec.format(root=tmp_path)])
    assert "\n" not in str(error.value)


def test_one_broken_photo_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    first, *_ = sorted(trained_names(4))
    (write_folder(tmp_path, trained_names(4)) / "images" / f"{first}.png").write_bytes(b"no picture")
    assert len(open_sources([str(tmp_path)])) == 4


def test_however_many_photos_are_broken_one_is_enough_to_start(tmp_path: Path) -> None:
    *broken, _ = sorted(trained_names(30))
    for name in broken:
        (write_folder(tmp_path, trained_names(30)) / "images" / f"{name}.png").write_bytes(b"no picture")
    assert len(open_sources([str(tmp_path)])) == 30


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.json", ' {"info": {}, "images": [], "annotations": []}', "coco"),
        ("a.JSON", '{"annotations": [], "images": []}', "coco"),
        ("a.jsonl", '{"images": [], "annotations": []}', "coco"),
        ("a.json", "\r\n [", "label-studio"),
        ("a.json", '{"id": 1, "annotations": []}', "label-studio"),
        ("a.ndjson", '{ "data": {}, "annotations": []}', "label-studio"),
    ],
)
def test_json_is_recognised_in_any_encoding(tmp_path: Path, encoding: str, name: str, text: str, kind: str) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    for path in (tmp_path, tmp_path / name, Path(f"{tmp_path / name}:{tmp_path}")):
        assert [one for one, how in KINDS.items() if how.recognises(path)] == [kind]


def test_json_is_told_apart_by_what_it_holds(tmp_path: Path) -> None:
    for name, content in (("coco", {"images": [], "annotations": []}), ("studio", [])):
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="COCO instance JSON"):
        open_sources([str(tmp_path / "coco")])
    with pytest.raises(ValueError, match="Label Studio's export"):
        open_sources([f"{tmp_path / 'studio' / 'a.json'}:{tmp_path}"])
