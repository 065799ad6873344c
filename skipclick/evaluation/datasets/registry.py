"""The data sets that can be measured: what each one's folder holds, and the counts and network sizes published."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from skipclick.evaluation.datasets.coco import list_coco
from skipclick.evaluation.datasets.cvat import list_cvat
from skipclick.evaluation.datasets.davis585 import list_davis585
from skipclick.evaluation.datasets.image_mask_folders import any_colour, instance_ids, list_hqseg, list_pairs, trimap
from skipclick.evaluation.datasets.label_studio_export import list_label_studio
from skipclick.evaluation.datasets.left_out import LeftOut, Listing, describe_left_out, left_out_for
from skipclick.evaluation.datasets.sample import Photo, Sample
from skipclick.evaluation.datasets.voc import list_pascal_voc, list_sbd
from skipclick.evaluation.datasets.winter_sports import list_shseg, list_wseseg


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a data set is laid out on disk, and what is published about it."""

    expects: str
    """What the folder must hold, in a line."""
    list_photos: Callable[[Path], Listing[Photo]]
    """Raises ValueError, saying what is missing, where the folder is not of this layout."""
    num_photos: int | None = None
    num_objects: int | None = None
    resolution: tuple[int, int] | None = None
    """(H, W) that the network worked at for the published figures; None where there are none: the model's own."""


LAYOUTS = {
    "GrabCut": Layout(
        expects="data_GT/ (photos) and boundary_GT/ (masks: above 128 the object, 128 ignored)",
        list_photos=list_pairs("data_GT", "boundary_GT", trimap),
        num_photos=50,
        num_objects=50,
        resolution=(448, 448),
    ),
    "Berkeley": Layout(
        expects="images/ and masks/ (as GrabCut's; a copy of the photo for each object: 96 photos)",
        list_photos=list_pairs("images", "masks", trimap),
        num_photos=100,
        num_objects=100,
        resolution=(448, 448),
    ),
    "DAVIS": Layout(
        expects="img/ and gt/ (masks: any colour the object, nothing ignored)",
        list_photos=list_pairs("img", "gt", any_colour),
        num_photos=345,
        num_objects=345,
        resolution=(672, 672),
    ),
    "DAVIS-585": Layout(
        expects="a folder for each sequence, with FRAME.jpg, OBJECT_FRAME.png (mask) and the masks to start from, "
        "init_sp_OBJECT_FRAME.png and init_stm_OBJECT_FRAME.png (--start sp or stm)",
        list_photos=list_davis585,
        num_photos=585,
        num_objects=585,
    ),
    "COCO_MVal": Layout(
        expects="img/ and gt/ (as DAVIS')",
        list_photos=list_pairs("img", "gt", any_colour),
        num_photos=800,
        num_objects=800,
        resolution=(448, 448),
    ),
    "SBD": Layout(
        expects="val.txt, img/NAME.jpg and inst/NAME.mat (GTinst: instance ids)",
        list_photos=list_sbd,
        num_photos=2857,
        num_objects=6671,
        resolution=(448, 448),
    ),
    "PascalVOC": Layout(
        expects="ImageSets/Segmentation/val.txt, JPEGImages/NAME.jpg and SegmentationObject/NAME.png "
        "(palette colours, that of void ignored)",
        list_photos=list_pascal_voc,
        num_photos=1449,
        num_objects=3417,
        resolution=(448, 448),
    ),
    "HQSeg-44k": Layout(
        expects="DIS5K/DIS-VD/ (im/ and gt/) and, in thin_object_detection/, ThinObject5K/ (images_test/ and "
        "masks_test/), COIFT/ (images/ and masks/), HRSOD/ (images/ and masks_max255/); masks as DAVIS'",
        list_photos=list_hqseg,
        num_photos=1537,
        num_objects=1537,
        resolution=(896, 896),
    ),
    "WSESeg": Layout(
        expects="nine folders flickr_CLASS/ and yt_sports/skijump/annotated_frames/0/, in each X.jpg and mask_X.png "
        "(instance ids); the published average is over the ten classes",
        list_photos=list_wseseg,
        num_photos=4221,
        num_objects=7452,
        resolution=(896, 896),
    ),
    "SHSeg": Layout(
        expects="X.jpg and mask_X.png (instance ids)",
        list_photos=list_shseg,
        num_photos=496,
        num_objects=534,
        resolution=(896, 896),
    ),
    "folder": Layout(
        expects="images/ and masks/ (one channel or a palette, one id per object; 0 background; ignored: 128 of 8 "
        "bits, 65535 of 16 bits)",
        list_photos=list_pairs("images", "masks", instance_ids),
    ),
    "coco": Layout(
        expects="COCO instance JSON: FILE.json:IMAGES, or a folder with one .json (in it or in annotations/) and "
        "images/; crowds ignored",
        list_photos=list_coco,
    ),
    "coco-with-crowds": Layout(
        expects="as coco; crowds (iscrowd) are objects too, as needed for CVAT's export COCO 1.0, which marks every "
        "mask in run lengths as a crowd",
        list_photos=partial(list_coco, crowds_as_objects=True),
    ),
    "cvat": Layout(
        expects="CVAT's export CVAT for images 1.1, with masks or polygons: FILE.xml:IMAGES, or a folder with one .xml "
        "and images/; shapes of one group and label are one object",
        list_photos=list_cvat,
    ),
    "label-studio": Layout(
        expects="Label Studio's export as JSON or JSON-MIN, with brush, bitmask or polygon regions: FILE.json:IMAGES, "
        "or a folder with one .json and images/; each region an object, one nested in another of its label belongs to "
        "it; photos are found by name",
        list_photos=list_label_studio,
    ),
}


@dataclass(frozen=True)
class EvaluationSet:
    """The photos of one data set, read from disk when they are needed."""

    name: str
    """Key of `LAYOUTS`, or a name for one's own photos."""
    folder: str
    """Where it lies, as given."""
    photos: tuple[Photo, ...]
    left_out: tuple[LeftOut, ...] = ()
    """What its files name but cannot be used, as far as that is known before a photo is read."""

    @property
    def resolution(self) -> tuple[int, int] | None:
        """(H, W) that the network worked at for the published figures; None where there are none."""
        return LAYOUTS[self.name].resolution if self.name in LAYOUTS else None

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index)

    def load(self, index: int) -> Sample:
        """Reads a photo. Raises ValueError, naming the file, if it or its mask is missing or broken."""
        return self.photos[index].load()


def open_dataset(
    name: str, folder: Path, limit: int | None = None, keep: Callable[[str], bool] | None = None
) -> EvaluationSet:
    """The data set of a layout (a key of `LAYOUTS`) that lies in a folder: lists names, reads no pictures.

    Only the first `limit` of the photos whose names `keep` accepts, such as those that training holds out.
    Raises ValueError, in a line that says what was expected, if the folder is not of this layout.
    """
    if name not in LAYOUTS:
        raise ValueError(f"unknown data set {name!r}: known are {', '.join(LAYOUTS)}")
    try:
        listing = LAYOUTS[name].list_photos(folder)
    except ValueError as error:
        raise ValueError(f"{name}={folder}: {error}; expected {LAYOUTS[name].expects}") from None
    photos = [photo for photo in listing.photos if keep is None or keep(photo.name)]
    if not photos:
        raise ValueError(f"{name}={folder}: there are no photos to measure")
    return EvaluationSet(name, str(folder), tuple(photos[:limit]), tuple(listing.left_out))


def check_set() -> EvaluationSet:
    """The pictures of `evaluation/check_set`, which come with the project."""
    return open_dataset("folder", Path(__file__).resolve().parents[1] / "check_set")


def describe_datasets(given: Mapping[str, Path]) -> str:
    """What `--list` prints: all data sets, and what the given folders hold, for which all their files are read."""
    head = f"{'':<14}{'photos':>8}{'objects':>9}{'network':>9}  what the folder holds"
    found = [_describe_found(name, folder) for name, folder in given.items()]
    return "\n".join([head, *map(_describe, LAYOUTS), *([""] if found else []), *found])


def _describe(name: str) -> str:
    """Published counts and side of the network, and what the folder must hold beside them."""
    layout = LAYOUTS[name]
    numbers = (layout.num_photos, layout.num_objects, layout.resolution and layout.resolution[0])
    cells = [f"{number:,}" if number else "-" for number in numbers]
    start = f"{name:<14}{cells[0]:>8}{cells[1]:>9}{cells[2]:>9}  "
    return textwrap.fill(
        layout.expects, 120, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
    )


def _describe_found(name: str, folder: Path) -> str:
    """Counts of one folder beside the published ones, and what is broken in it; or why it cannot be opened."""
    try:
        dataset = open_dataset(name, folder)
    except ValueError as error:
        return str(error)
    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(_objects, dataset.photos), name, len(dataset), unit="photo", disable=None))
    num_broken = sum(count is None for count, _ in found)
    layout = LAYOUTS[name]
    counts = [
        f"{len(dataset):,} photos{_of(layout.num_photos)}",
        f"{sum(count or 0 for count, _ in found):,} objects{_of(layout.num_objects)}",
        f"{num_broken} broken",
    ]
    left_out = describe_left_out(chain(dataset.left_out, *(of_photo for _, of_photo in found)))
    return "\n".join([f"{name}={folder}: {', '.join(counts)}", *(f"  left out: {line}" for line in left_out)])


def _of(published: int | None) -> str:
    return "" if published is None else f" (published: {published:,})"


def _objects(photo: Photo) -> tuple[int | None, tuple[LeftOut, ...]]:
    """How many objects a photo has, None if it is broken, and what is left out."""
    try:
        sample = photo.load()
    except ValueError as error:
        return None, (left_out_for(error),)
    return len(sample.targets), sample.left_out
