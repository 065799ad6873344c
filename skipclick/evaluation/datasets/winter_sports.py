"""WSESeg and SHSeg: `mask_X.png`, instance ids, belongs to `X.jpg` in the same folder; nothing is ignored.

Their authors publish the masks alone: the photos of WSESeg are on Flickr and YouTube, those of SHSeg in SkiTB. The
masks were drawn on the photos as stored, so EXIF orientation is not applied, as in the released code.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from skipclick.evaluation.datasets.left_out import Listing
from skipclick.evaluation.datasets.sample import Content, Photo, instance_targets, read_ids, read_photo

# Where each class of WSESeg lies.
WSESEG_FOLDERS = {
    "flickr_bobsleighs": "flickr_bobsleighs",
    "flickr_curling_brooms": "flickr_curling_brooms",
    "flickr_curling_stone": "flickr_curling_stone",
    "flickr_ski_goggles": "flickr_ski_goggles",
    "flickr_ski_helmets": "flickr_ski_helmets",
    "flickr_ski_misc": "flickr_ski_misc",
    "flickr_slalom_obstacles": "flickr_slalom_obstacles",
    "flickr_snow_kites": "flickr_snow_kites",
    "flickr_snowboards": "flickr_snowboards",
    "yt_sports": "yt_sports/skijump/annotated_frames/0",
}


def list_wseseg(folder: Path) -> Listing[Photo]:
    """The ten classes one after the other; a name begins with its class, which is the category too."""
    return Listing(
        [
            Photo(f"{name}/{_key(mask)}", partial(_read, mask), category=name)
            for name, place in WSESEG_FOLDERS.items()
            for mask in _masks(folder / place)
        ]
    )


def list_shseg(folder: Path) -> Listing[Photo]:
    """All masks of a flat folder."""
    return Listing([Photo(_key(mask), partial(_read, mask)) for mask in _masks(folder)])


def _masks(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if masks := sorted(folder.glob("mask_*.png")):
        return masks
    raise ValueError(f"there is no mask_*.png in {folder}")


def _key(mask: Path) -> str:
    return mask.stem.removeprefix("mask_")


def _read(mask: Path) -> Content:
    image = read_photo(mask.with_name(f"{_key(mask)}.jpg"), turned=False)
    return Content(image, instance_targets(read_ids(mask)))
