"""`python -m backend export --project N --format coco|yolo-seg|masks`: a project's accepted masks, for other tools.

Reads the annotations from Label Studio, task by task, and keeps their content in OUTPUT/tasks, from which the files of
the format are written. Run again, it reads only what changed since, and so continues after an interruption. Of a task's
annotations, `skipclick.evaluation.datasets.agreement` selects the one that counts; what is left out is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TextIO
from urllib.parse import parse_qs, unquote, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.label_studio.annotations import Annotation, UnusableError, read_task
from backend.label_studio.auth import LabelStudioAuth
from backend.label_studio.client import ApiError, LabelStudioApi, get_object, project_tasks
from backend.label_studio.labeling_config import MASK_KINDS, LabelingConfig, parse_labeling_config
from backend.settings import Settings, revealed
from skipclick import polygons
from skipclick.atomic_io import atomic_write
from skipclick.evaluation.datasets.agreement import choose
from skipclick.evaluation.datasets.label_studio import AnnotatedObject
from skipclick.masks import BoxMask

BAD_USE = 2
NO_LABEL = "object"
"""The class of masks without a label."""
NOT_CHOSEN = "another annotation of the task counts: the ground truth, else the one most agree with, else the oldest"

_LONGEST_NAME = 200  # bytes of a photo's or a label's name in names of files, which have 255 at most
_PAGE = 20  # tasks per request to Label Studio; each comes with all its masks
_UNSAFE = re.compile(r"[^-\w. ]")  # in names of files
_PAUSE = 1.0  # seconds before the first retry

Task = Mapping[str, Any]
"""The kept content of a task: {"task", "stamp", "left_out": {reason: count}, "images": [{"file_name", "width",
"height", "objects": [{"label", "region", "counts"}]}]}; counts are COCO's run lengths, down the columns, background
first."""


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 for success, 2 for wrong settings or options, with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m backend export", description=__doc__.partition("\n")[0])
    parser.add_argument("--project", type=int, required=True, help="id of the project in Label Studio")
    parser.add_argument("--format", choices=sorted(WRITERS), required=True)
    parser.add_argument("--output", type=Path, help="folder (default: export-N)")
    options = parser.parse_args(arguments)
    output = options.output or Path(f"export-{options.project}")
    try:
        settings = Settings.from_environment(os.environ)
        key, timeout = revealed(settings.label_studio_api_key), settings.image_timeout
        api = LabelStudioApi(LabelStudioAuth(settings.label_studio_url, key, timeout), timeout)
        for line in export(api, options.project, options.format, output, settings.image_max_pixels):
            print(line)
    except ApiError as error:
        print(f"the project cannot be read from Label Studio: {error}", file=sys.stderr)
        return BAD_USE
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_USE
    return 0


def export(api: LabelStudioApi, project: int, kind: str, output: Path, max_pixels: int) -> Iterator[str]:
    """Writes the files and yields a summary. Raises `ApiError`, and `ConfigError` for a config that is not XML."""
    config = parse_labeling_config(str(get_object(api, f"/api/projects/{project}/", _PAUSE).get("label_config") or ""))
    kept = output / "tasks"
    seen, num_read = set(), 0
    for task in project_tasks(api, project, _PAUSE, _PAGE, fields="all"):
        path = kept / f"{task['id']}.json"
        annotations = sorted(read_task(task, config), key=lambda one: one.id)
        stamp = [[one.id, one.updated_at, one.ground_truth, one.annotator] for one in annotations]
        seen.add(path.name)
        if not path.exists() or _read(path)["stamp"] != stamp:
            content = {"task": task["id"], "stamp": stamp, **_content(annotations, max_pixels)}
            _write(path, json.dumps(content))
            num_read += 1
    for path in kept.glob("*.json"):
        if path.name not in seen:
            path.unlink()  # its task was deleted
    WRITERS[kind](output, _labels(config, kept))
    counts: Counter[str] = Counter()
    num_images = num_objects = 0
    for one in _tasks(kept):
        counts.update(one["left_out"])
        num_images += len(one["images"])
        num_objects += sum(len(image["objects"]) for image in one["images"])
    yield f"{output}: {num_objects} objects in {num_images} images; {num_read} of {len(seen)} tasks were new or changed"
    for reason, count in counts.most_common():
        yield f"left out, {count} x: {reason}"


def _content(annotations: Sequence[Annotation], max_pixels: int) -> dict[str, Any]:
    """The content of the task's annotation that counts, and what is left out of all of them."""
    left_out: Counter[str] = Counter()
    images: dict[str, dict[str, Any]] = {}

    def decode(annotation: Annotation) -> list[tuple[AnnotatedObject, BoxMask]]:
        usable = []
        for one in annotation.objects:
            try:
                usable.append((one, BoxMask.of(one.mask(max_pixels))))
            except UnusableError as error:
                left_out[str(error.reason)] += 1
        return usable

    for annotation in annotations:
        left_out.update({str(reason): count for reason, count in annotation.skipped.items()})
    chosen, usable = choose(annotations, decode)
    others = sum(bool(one.objects) for place, one in enumerate(annotations) if place != chosen)
    if chosen is not None and others:
        left_out[NOT_CHOSEN] = others
    for one, mask in usable:
        height, width = mask.size
        image = {"file_name": file_name(one.image), "width": width, "height": height, "objects": []}
        found = {"label": one.label or NO_LABEL, "region": one.region, "counts": column_runs(mask.full())}
        images.setdefault(f"{one.image} {width}x{height}", image)["objects"].append(found)
    return {"left_out": dict(left_out), "images": list(images.values())}


def file_name(reference: str) -> str:
    """The file name in a task's address."""
    try:
        parts = urlsplit(reference)
    except ValueError:
        return "image"
    local_file = parse_qs(parts.query).get("d")  # /data/local-files/?d=folder/photo.jpg
    path = local_file[0] if local_file else unquote(parts.path)
    return "image" if parts.scheme == "data" else _last_part(path) or "image"


def _last_part(path: str) -> str:
    name = PurePosixPath(path.replace("\\", "/")).name
    return "" if name in (".", "..") else name


def column_runs(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths of a mask (H, W): down the columns, background first."""
    pixels = mask.T.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs = np.diff(changes, prepend=0, append=pixels.size).tolist()
    return [0, *runs] if pixels[0] else runs


def mask_of(image: Mapping[str, Any], one: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask, bool (H, W), of a kept object."""
    values = np.arange(len(one["counts"])) % 2 == 1
    return np.repeat(values, one["counts"]).reshape(image["width"], image["height"]).T


def _write_coco(output: Path, labels: Sequence[str]) -> None:
    """annotations.json, written object by object: the file may be larger than memory."""
    categories = [{"id": number, "name": label, "supercategory": ""} for number, label in enumerate(labels, 1)]
    with atomic_write(output / "annotations.json") as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f'{{"info": {{}}, "licenses": [], "categories": {json.dumps(categories)}, "images": ')
        _write_list(
            file, ({key: image[key] for key in ("id", "file_name", "width", "height")} for image in _images(output))
        )
        file.write(', "annotations": ')
        _write_list(file, _coco_annotations(output, {label: number for number, label in enumerate(labels, 1)}))
        file.write("}\n")


def _coco_annotations(output: Path, numbers: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    number = 0
    for image in _images(output):
        for one in image["objects"]:
            number += 1
            mask = BoxMask.of(mask_of(image, one))
            top, left, bottom, right = mask.box
            yield {
                "id": number,
                "image_id": image["id"],
                "category_id": numbers[one["label"]],
                "segmentation": {"size": [image["height"], image["width"]], "counts": one["counts"]},
                "area": int(mask.pixels.sum()),
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
                "attributes": {"task": image["task"], "region": one["region"]},
            }


def _write_yolo(output: Path, labels: Sequence[str]) -> None:
    """labels/NAME.txt for each image, and data.yaml. One polygon for each object: holes and further parts are connected
    to it by bridges of zero width."""
    numbers = {label: number for number, label in enumerate(labels)}
    written = set()
    for image, name in _named(output):
        lines = []
        for one in image["objects"]:
            rings = [ring for part in polygons.outline(BoxMask.of(mask_of(image, one))).polygons for ring in part.rings]
            points = polygons.bridged(rings) / (image["width"], image["height"])
            lines.append(f"{numbers[one['label']]} " + " ".join(f"{value:.6g}" for value in points.clip(0, 1).ravel()))
        written.add(output / "labels" / f"{name}.txt")
        _write(output / "labels" / f"{name}.txt", "\n".join(lines) + "\n")
    _remove_others(output / "labels", "*.txt", written)
    names = "".join(f"  {number}: {json.dumps(label)}\n" for label, number in numbers.items())
    _write(output / "data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{names}")


def _write_masks(output: Path, labels: Sequence[str]) -> None:
    """masks/NAME/NUMBER-LABEL.png for each object, white on black, and masks/index.jsonl, which says what each is."""
    written = set()
    with atomic_write(output / "masks" / "index.jsonl") as temporary, temporary.open("w", encoding="utf-8") as index:
        for image, name in _named(output):
            for number, one in enumerate(image["objects"], 1):
                path = output / "masks" / name / f"{number}-{_part_of_a_name(_UNSAFE.sub('_', one['label']))}.png"
                encoded, png = cv2.imencode(".png", mask_of(image, one).astype(np.uint8) * 255)
                assert encoded
                with atomic_write(path) as aside:
                    aside.write_bytes(png.tobytes())
                written.add(path)
                about = {"file": str(path.relative_to(output / "masks")), "image": image["file_name"]}
                about |= {"task": image["task"], "region": one["region"], "label": one["label"]}
                index.write(json.dumps(about, ensure_ascii=False) + "\n")
    _remove_others(output / "masks", "*/*.png", written)


WRITERS = {"coco": _write_coco, "yolo-seg": _write_yolo, "masks": _write_masks}
"""Functions that write the files of a format, for the tasks in a folder and these labels."""


def _remove_others(folder: Path, pattern: str, written: Collection[Path]) -> None:
    """Delete what an earlier export wrote and this one did not."""
    for path in folder.glob(pattern):
        if path not in written:
            path.unlink()


def _images(output: Path) -> Iterator[dict[str, Any]]:
    """All images that have objects, with the task's id and a number of their own."""
    number = 0
    for task in _tasks(output / "tasks"):
        for image in task["images"]:
            number += 1
            yield {**image, "id": number, "task": task["task"]}


def _named(output: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """All images, each with a unique name: the stem of the file, followed by the task's id if that is taken."""
    taken: set[str] = set()
    for image in _images(output):
        stem = name = _part_of_a_name(PurePosixPath(image["file_name"]).stem)
        if name in taken:
            name = f"{stem}-task{image['task']}"
        if name in taken:
            name = f"{stem}-image{image['id']}"
        taken.add(name)
        yield image, name


def _part_of_a_name(text: str) -> str:
    """A text as a part of a file's name: some are too long for one, or have characters that no disk takes."""
    printable = "".join(char if char.isprintable() else "_" for char in text)
    return printable.encode(errors="replace")[:_LONGEST_NAME].decode(errors="ignore")


def _labels(config: LabelingConfig, kept: Path) -> list[str]:
    """The labels of the config's mask tags, in its order, then all others that objects have."""
    known = [label for tag in config.controls.values() if tag.kind in MASK_KINDS for label in tag.labels]
    used = {one["label"] for task in _tasks(kept) for image in task["images"] for one in image["objects"]}
    return list(dict.fromkeys([*known, *sorted(used - set(known))]))


def _tasks(kept: Path) -> Iterator[Task]:
    """The kept tasks in the order of their ids."""
    for path in sorted(kept.glob("*.json"), key=lambda path: int(path.stem)):
        yield _read(path)


def _read(path: Path) -> Task:
    content: Task = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_list(file: TextIO, items: Iterator[Mapping[str, Any]]) -> None:
    separator = "["
    for item in items:
        file.write(separator + json.dumps(item, ensure_ascii=False))
        separator = ",\n"
    file.write("[]" if separator == "[" else "]")
