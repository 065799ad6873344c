"""Protects the combined COCO and LVIS: the released converter's masks come back, and nothing in a file is executed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.drawn_pictures import save
from tests.support.parity_files import for_each_golden, load_golden, unpack_bits
from train.sources import open_sources
from train.sources.cocolvis import read_scene


def write_photo(
    folder: Path, name: str, layers: NDArray[np.uint8], mapping: list[tuple[int, int]], hierarchy: dict[int, Any]
) -> dict[str, Any]:
    """A photo's files as the released converter writes them; returns its entry of hannotation.pickle."""
    save(folder / "images" / f"{name}.jpg", np.zeros((*layers.shape[1:], 3), np.uint8))
    (folder / "masks").mkdir(exist_ok=True)
    pngs = [cv2.imencode(".png", layer)[1] for layer in layers]
    (folder / "masks" / f"{name}.pickle").write_bytes(pickle.dumps((pngs, mapping)))
    return {"num_instance_masks": len(hierarchy), "hierarchy": hierarchy}


def write_set(root: Path, golden: Path, split: str = "train") -> dict[str, NDArray[Any]]:
    data = load_golden(golden)
    entries = {}
    for case in (f"i{i}" for i in range(int(data["n"]))):
        hierarchy = {int(k): node for k, node in json.loads(str(data[f"{case}_hierarchy_json"])).items()}
        mapping = [(int(layer), int(value)) for layer, value in data[f"{case}_mapping"]]
        layers = np.ascontiguousarray(np.moveaxis(data[f"{case}_layers"], 2, 0))
        entries[case] = write_photo(root / split, case, layers, mapping, hierarchy)
    (root / split / "hannotation.pickle").write_bytes(pickle.dumps(entries))
    return data


@for_each_golden("golden_cocolvis*.npz")
def test_the_converters_masks_come_back(golden: Path, tmp_path: Path) -> None:
    data = write_set(tmp_path, golden)
    (source,) = open_sources([str(tmp_path)], "all").parts
    assert source.kind == "cocolvis"
    for photo in source.photos:
        _, scene = photo.load()
        masks = unpack_bits(data[f"{photo.name}_masks"], tuple(data[f"{photo.name}_masks_shape"]))
        hierarchy = json.loads(str(data[f"{photo.name}_hierarchy_json"]))
        assert len(scene.objects) == int(data[f"{photo.name}_num_instance_masks"])
        assert len(scene.objects) + len(scene.stuff) == len(masks)
        for part, mask in zip(scene.objects + scene.stuff, masks, strict=True):
            np.testing.assert_array_equal(scene.mask(part), mask)
        for index, part in enumerate(scene.objects):
            assert part.parent == (hierarchy[str(index)] or {"parent": None})["parent"]


@for_each_golden("golden_cocolvis*.npz")
def test_the_published_validation_part_is_held_out(golden: Path, tmp_path: Path) -> None:
    write_set(tmp_path, golden)
    write_set(tmp_path, golden, "val")
    sources = {split: open_sources([str(tmp_path)], split) for split in ("train", "held_out", "all")}  # type: ignore[arg-type]
    assert [len(part) for part in sources.values()] == [3, 3, 6]


LAYER = np.array([[1, 2], [0, 2]], np.uint8)


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ([(0, 1)], "do not agree"),
        ([(0, 1), (1, 1)], "do not agree"),
        ([(0, 1), (0, 0)], "do not agree"),
        ("x", "not hold"),
    ],
)
def test_masks_that_do_not_agree_are_named(tmp_path: Path, mapping: Any, reason: str) -> None:
    write_photo(tmp_path, "a", LAYER[None], mapping, {})
    with pytest.raises(ValueError, match=rf"a\.pickle.*{reason}"):
        read_scene(tmp_path / "masks" / "a.pickle", np.array([-1, -1], np.int32))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    parents = np.array([-1], np.int32)
    file = tmp_path / "a.pickle"
    with pytest.raises(ValueError, match=r"a\.pickle cannot be read"):
        read_scene(file, parents)
    colour = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1]
    for content in (3, ([b"x"], [(0, 1)]), ([colour], [(0, 1)])):
        file.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=r"a\.pickle"):
            read_scene(file, parents)


class Mischief:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was_here"),)


def test_nothing_in_the_annotations_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "hannotation.pickle").write_bytes(pickle.dumps({"a": Mischief()}))
    with pytest.raises(ValueError, match=r"is not a pickle of plain data: it refers to"):
        open_sources([str(tmp_path)])
    assert not (tmp_path / "was_here").exists()
    (tmp_path / "train" / "hannotation.pickle").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="is not a pickle"):
        open_sources([str(tmp_path)])


@pytest.mark.parametrize(
    "entry", [3, {}, {"num_instance_masks": 1, "hierarchy": {0: {"parent": 5}}}, {"num_instance_masks": "x"}]
)
def test_other_annotations_are_refused(tmp_path: Path, entry: Any) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "hannotation.pickle").write_bytes(pickle.dumps({"a": entry}))
    with pytest.raises(ValueError, match="is not an annotation of the combined COCO and LVIS"):
        open_sources([str(tmp_path)])
