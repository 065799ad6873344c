"""Protects the ways to name an annotation file and its photos on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from skipclick.evaluation.datasets.annotation_file import find_annotations, read_head, read_json


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances.json").write_text("{}")
    return tmp_path


def test_the_file_and_the_photos_by_name(root: Path) -> None:
    file, images = root / "annotations" / "instances.json", root / "val2017"
    assert find_annotations(Path(f"{file}:{images}")) == (file, images)


def test_a_file_has_its_photos_beside_it(root: Path) -> None:
    file = root / "annotations" / "instances.json"
    assert find_annotations(file) == (file, root / "annotations")
    moved = file.rename(root / "instances.json")
    assert find_annotations(moved) == (moved, root / "images")


def test_a_folder_has_one_file(root: Path) -> None:
    file = root / "annotations" / "instances.json"
    assert find_annotations(root) == (file, root / "images")
    nearer = root / "export.json"
    nearer.write_text("[]")
    assert find_annotations(root) == (nearer, root / "images")
    (root / "export2.json").write_text("[]")
    with pytest.raises(ValueError, match=r"one \.json .*, found export\.json, export2\.json: name it as FILE"):
        find_annotations(root)


def test_what_is_missing_is_named(root: Path) -> None:
    with pytest.raises(ValueError, match=r"needs one \.json with the annotations, found none"):
        find_annotations(root / "images")
    with pytest.raises(ValueError, match=r"there is no file .*nothing\.json"):
        find_annotations(Path(f"{root}/nothing.json:{root}/images"))
    with pytest.raises(ValueError, match=r"there is no file .*nowhere"):
        find_annotations(root / "nowhere")
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        find_annotations(Path(f"{root}/annotations/instances.json:{root}/nowhere"))


def test_json_is_json(root: Path) -> None:
    (root / "a.json").write_bytes(b'{"a": ')
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        read_json(root / "a.json")
    (root / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        read_json(root / "a.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_may_have_any_encoding_and_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes('\n {"a": "ü"}'.encode(encoding))
    assert read_json(file) == [{"a": "ü"}]
    assert read_head(file).startswith('{"a"')
    file.write_bytes('{"a": "ü"}\n\n[3]\n{"cut'.encode(encoding))
    assert read_json(file) == [{"a": "ü"}, [3], None]


def test_pretty_json_that_was_cut_off_is_no_json_lines(tmp_path: Path) -> None:
    for text in ('{\n"a": 3,\n', '[\n{"a": 3},\n{"b": 4}\n', "", "\n", "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=r"a\.json is not JSON"):
            read_json(tmp_path / "a.json")
