"""Some 900 picture files out of 70: orientations, odd metadata, damage. Each is a pure function of a fixture.

The files in tests/fixtures/pictures are what encoders wrote; everything here is done to their bytes by hand, so that a
file is the same on every machine and whatever the encoders' versions.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[1] / "fixtures" / "pictures"
SHOWN = FIXTURES / "shown.json"
"""What Chromium shows of each file; tests/fixtures/pictures/README.md says how it is rebuilt."""

COLUMNS, ROWS = 6, 4
"""Of the points of a shown picture whose colours stand there: the middles of so many equal parts."""

ORIENTATION = 0x0112
BYTE, ASCII, SHORT, LONG, RATIONAL, SBYTE, UNDEFINED, SSHORT, SLONG, SRATIONAL, FLOAT, DOUBLE = range(1, 13)
_CODES = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "L", SBYTE: "b", UNDEFINED: "B", SSHORT: "h", SLONG: "l"}
_CODES |= {RATIONAL: "LL", SRATIONAL: "ll", FLOAT: "f", DOUBLE: "d"}

Entry = tuple[int, int, tuple[Any, ...]]
"""Tag, type, values; a rational's value is a pair."""


def picture_files() -> dict[str, bytes]:
    """All files by name."""
    made = [*_jpeg(), *_jpeg_damage(), *_png(), *_png_metadata(), *_png_damage(), *_webp(), *_webp_damage()]
    made += [*_gif(), *_bmp(), *_avif()]
    files = dict(made)
    assert len(files) == len(made), "two files have the same name"
    return files


def check_sum(name: str, data: bytes) -> str:
    """By which the table knows its files; none where compressing is the point, which versions do differently."""
    return "" if "bomb" in name else hashlib.sha256(data).hexdigest()[:16]


def fixture(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


# EXIF


def stored(data: bytes) -> bytes:
    """As zlib writes it without compressing, which does not depend on its version."""
    return zlib.compress(data, 0)


def exif(
    orientation: int = 6,
    *,
    order: str = "<",
    kind: int = SHORT,
    values: tuple[Any, ...] | None = None,
    number: int | None = None,
    more: tuple[Entry, ...] = (),
    next_ifd: bytes | None = None,
) -> bytes:
    """A TIFF structure whose first directory holds an orientation; `number` as the number of values that it claims."""
    entry = (ORIENTATION, kind, (orientation,) if values is None else values)
    return tiff([entry, *more], order=order, number=number, next_ifd=next_ifd)


def tiff(
    entries: list[Entry],
    *,
    order: str = "<",
    number: int | None = None,
    next_ifd: bytes | None = None,
    offset: int = 8,
) -> bytes:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}L", offset)
    return head.ljust(offset, b"\0") + directory(entries, order, offset, number, next_ifd)


def directory(
    entries: list[Entry], order: str, offset: int, number: int | None = None, next_ifd: bytes | None = None
) -> bytes:
    """The directory at `offset`; what does not fit into an entry follows it, then the next directory."""
    beyond = offset + 2 + 12 * len(entries) + 4
    fields, extra = b"", b""
    for tag, kind, values in entries:
        data = b"".join(
            struct.pack(f"{order}{_CODES[kind]}", *(value if isinstance(value, tuple) else (value,)))
            for value in values
        )
        fields += struct.pack(f"{order}HHL", tag, kind, number if number and tag == ORIENTATION else len(values))
        if len(data) <= 4:
            fields += data.ljust(4, b"\0")
        else:
            fields += struct.pack(f"{order}L", beyond + len(extra))
            extra += data
    following = struct.pack(f"{order}L", beyond + len(extra) if next_ifd is not None else 0)
    return struct.pack(f"{order}H", len(entries)) + fields + following + extra + (next_ifd or b"")


PREFIX = b"Exif\0\0"
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
CAMERA: Entry = (0x010F, ASCII, tuple(b"Camera\0"))


def xmp(orientation: int = 6) -> bytes:
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="w"?>'
    ).encode()


def odd_exif() -> Iterator[tuple[str, bytes]]:
    """Orientations as the standard does not write them, by name; none of them has a prefix."""
    for value in range(1, 9):
        yield f"big-endian-{value}", exif(value, order=">")
    kinds = {"byte": BYTE, "ascii": ASCII, "long": LONG, "sbyte": SBYTE, "undefined": UNDEFINED, "sshort": SSHORT}
    kinds |= {"slong": SLONG, "float": FLOAT, "double": DOUBLE}
    for order, name in (("<", "little"), (">", "big")):
        for kind, number in kinds.items():
            yield f"type-{kind}-{name}", exif(6, kind=number, order=order)
        yield f"type-rational-{name}", exif(kind=RATIONAL, values=((6, 1),), order=order)
        yield f"count-2-{name}", exif(values=(6, 3), order=order)
        yield f"count-3-{name}", exif(values=(6, 6, 6), order=order)
        yield (
            f"count-0-{name}",
            exif(6, order=order).replace(
                struct.pack(f"{order}HHL", ORIENTATION, SHORT, 1), struct.pack(f"{order}HHL", ORIENTATION, SHORT, 0)
            ),
        )
        yield f"count-huge-{name}", exif(6, order=order, number=0xFFFFFFFF)
        yield f"long-upper-half-{name}", exif(0x00010006, kind=LONG, order=order)
    for value in (0, 9, 256, 0x0600, 0x0106, 0xFFFF):
        yield f"value-{value}", exif(value)
    yield "ascii-digit", exif(kind=ASCII, values=tuple(b"6\0"))
    yield "type-0", exif(6).replace(struct.pack("<HHL", ORIENTATION, 3, 1), struct.pack("<HHL", ORIENTATION, 0, 1))
    yield "type-99", exif(6).replace(struct.pack("<HHL", ORIENTATION, 3, 1), struct.pack("<HHL", ORIENTATION, 99, 1))
    yield "twice-6-3", exif(6, more=((ORIENTATION, SHORT, (3,)),))
    yield "twice-bad-3", exif(9, more=((ORIENTATION, SHORT, (3,)),))
    yield "after-camera", tiff([CAMERA, (ORIENTATION, SHORT, (6,))])
    yield "unsorted", tiff([(0x0131, ASCII, tuple(b"Editor 1.0\0")), (ORIENTATION, SHORT, (6,)), CAMERA])
    thumbnail = directory([(ORIENTATION, SHORT, (3,)), (0x0201, LONG, (200,)), (0x0202, LONG, (10,))], "<", 26)
    yield "thumbnail-3", exif(6, next_ifd=thumbnail) + b"\xff\xd8" * 100
    yield "only-in-thumbnail", tiff([CAMERA], next_ifd=directory([(ORIENTATION, SHORT, (6,))], "<", 33))
    sub = directory([(ORIENTATION, SHORT, (6,))], "<", 26)
    yield "only-in-sub-directory", tiff([(0x8769, LONG, (26,))]) + sub
    both = [(0x8769, LONG, (38,)), (ORIENTATION, SHORT, (6,))]
    yield "sub-directory-3-first", tiff(both) + directory([(ORIENTATION, SHORT, (3,))], "<", 38)
    yield "sub-directory-3-behind", tiff(both[::-1]) + directory([(ORIENTATION, SHORT, (3,))], "<", 38)
    both[1] = (ORIENTATION, SHORT, (9,))
    yield "sub-directory-3-beside-9", tiff(both[::-1]) + directory([(ORIENTATION, SHORT, (3,))], "<", 38)
    yield "sub-directory-is-itself", tiff([(0x8769, LONG, (8,)), (ORIENTATION, SHORT, (6,))])
    yield "sub-directory-beyond", tiff([(0x8769, LONG, (9999,)), (ORIENTATION, SHORT, (6,))])
    yield "sub-directory-short", tiff([(0x8769, SHORT, (26,))]) + sub
    nested = directory([(0x8769, LONG, (44,))], "<", 26) + directory([(ORIENTATION, SHORT, (3,))], "<", 44)
    yield "sub-directory-in-sub-directory", tiff([(0x8769, LONG, (26,))]) + nested
    yield "gps-directory", tiff([(0x8825, LONG, (26,))]) + sub
    yield "directory-later", tiff([(ORIENTATION, SHORT, (6,))], offset=100)
    yield "directory-at-odd-offset", tiff([(ORIENTATION, SHORT, (6,))], offset=9)
    yield "longer-than-needed", exif(6) + bytes(3000)
    # broken
    whole = tiff([(ORIENTATION, SHORT, (6,)), CAMERA])
    for end in (0, 1, 4, 7, 8, 9, 10, 20, 21, 22, 24, 30):
        yield f"cut-at-{end}", whole[:end]
    yield "no-next-offset", exif(6)[:-4]
    yield "value-elsewhere-missing", tiff([(ORIENTATION, SHORT, (6,)), (0x010F, ASCII, tuple(b"Camera\0"))])[:-7]
    yield "broken-entry-before", tiff([(0x010F, ASCII, tuple(b"Camera\0")), (ORIENTATION, SHORT, (6,))])[:-7]
    yield (
        "broken-type-before",
        tiff([(0x010F, SHORT, (1,)), (ORIENTATION, SHORT, (6,))]).replace(
            struct.pack("<HHL", 0x010F, 3, 1), struct.pack("<HHL", 0x010F, 77, 1)
        ),
    )
    yield "magic-43", exif(6).replace(b"II*\0", b"II+\0")
    yield "magic-0", exif(6).replace(b"II*\0", b"II\0\0")
    yield "order-IM", exif(6).replace(b"II*\0", b"IM*\0")
    yield "order-XX", exif(6).replace(b"II*\0", b"XX*\0")
    yield "order-lies", exif(6).replace(b"II*\0", b"MM\0*")
    yield "directory-beyond-end", exif(6).replace(b"II*\0\x08", b"II*\0\xf0")
    yield "directory-far-beyond", exif(6).replace(b"II*\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff")
    yield "directory-at-0", exif(6).replace(b"II*\0\x08", b"II*\0\x00")
    yield "directory-at-4", b"II*\0" + struct.pack("<LHHLHHL", 4, ORIENTATION, SHORT, 1, 6, 0, 0)
    yield "next-is-itself", exif(6)[:-4] + struct.pack("<L", 8)
    yield "more-entries-than-there", exif(6).replace(b"\x08\0\0\0\x01\0", b"\x08\0\0\0\xff\xff")
    yield "no-entries", tiff([])
    yield "zeros", bytes(64)
    yield "text", b"not EXIF at all, but text"


# JPEG


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_segments(jpeg: bytes, *segments: bytes, before: int | None = None) -> bytes:
    """Segments put behind JFIF's, or before the first of a marker."""
    at = 2 + 18
    while before is not None and jpeg[at + 1] != before:
        at += 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
    return jpeg[:at] + b"".join(segments) + jpeg[at:]


def app1(data: bytes) -> bytes:
    return segment(0xE1, PREFIX + data)


def _jpeg() -> Iterator[tuple[str, bytes]]:
    scene = fixture("scene.jpg")
    assert scene[:4] == b"\xff\xd8\xff\xe0"
    assert len(scene) > 20
    bare = scene[:2] + scene[20:]
    yield "jpeg/plain.jpg", scene
    yield "jpeg/without-jfif.jpg", bare
    yield "jpeg/report-without-end.jpg", fixture("report-without-end.jpg")
    yield "jpeg/report-cut-90.jpg", fixture("report-cut-90.jpg")
    for value in range(1, 9):
        yield f"jpeg/exif-{value}.jpg", with_segments(scene, app1(exif(value)))
        yield f"jpeg/progressive-exif-{value}.jpg", with_segments(fixture("progressive.jpg"), app1(exif(value)))
    for name, data in odd_exif():
        yield f"jpeg/exif-{name}.jpg", with_segments(scene, app1(data))
    yield "jpeg/exif-instead-of-jfif.jpg", bare[:2] + app1(exif()) + bare[2:]
    yield "jpeg/exif-before-jfif.jpg", scene[:2] + app1(exif()) + scene[2:]
    yield "jpeg/exif-before-tables.jpg", with_segments(scene, app1(exif()), before=0xDB)
    yield "jpeg/exif-before-frame.jpg", with_segments(scene, app1(exif()), before=0xC0)
    yield "jpeg/exif-before-scan.jpg", with_segments(scene, app1(exif()), before=0xDA)
    yield "jpeg/exif-behind-end.jpg", scene + app1(exif())
    yield "jpeg/exif-before-end.jpg", scene[:-2] + app1(exif()) + scene[-2:]
    yield "jpeg/exif-in-app2.jpg", with_segments(scene, segment(0xE2, PREFIX + exif()))
    yield "jpeg/exif-in-comment.jpg", with_segments(scene, segment(0xFE, PREFIX + exif()))
    # prefixes
    for name, prefix in {
        "none": b"", "one-zero": b"Exif\0", "pad-ff": b"Exif\0\xff", "pad-both": b"Exif\xff\xff", "lower": b"exif\0\0",
        "upper": b"EXIF\0\0", "twice": PREFIX * 2, "blanks": b"Exif  ", "zero-one": b"Exif\0\x01"
    }.items():  # fmt: skip
        yield f"jpeg/prefix-{name}.jpg", with_segments(scene, segment(0xE1, prefix + exif()))
    # several blocks
    yield "jpeg/exif-6-exif-3.jpg", with_segments(scene, app1(exif(6)), app1(exif(3)))
    yield "jpeg/exif-3-exif-6.jpg", with_segments(scene, app1(exif(3)), app1(exif(6)))
    yield "jpeg/exif-1-exif-6.jpg", with_segments(scene, app1(exif(1)), app1(exif(6)))
    yield "jpeg/exif-9-exif-6.jpg", with_segments(scene, app1(exif(9)), app1(exif(6)))
    yield "jpeg/exif-camera-exif-6.jpg", with_segments(scene, app1(tiff([CAMERA])), app1(exif(6)))
    yield "jpeg/exif-empty-exif-6.jpg", with_segments(scene, app1(b""), app1(exif(6)))
    yield "jpeg/exif-short-exif-6.jpg", with_segments(scene, app1(b"II*\0"), app1(exif(6)))
    yield "jpeg/exif-broken-exif-6.jpg", with_segments(scene, app1(b"XX*\0" + bytes(40)), app1(exif(6)))
    yield "jpeg/exif-beyond-exif-6.jpg", with_segments(scene, app1(b"II*\0\xf0\0\0\0" + bytes(40)), app1(exif(6)))
    yield "jpeg/exif-6-exif-broken.jpg", with_segments(scene, app1(exif(6)), app1(b"XX*\0" + bytes(40)))
    yield "jpeg/exif-split.jpg", with_segments(scene, app1(exif()[:12]), app1(exif()[12:]))
    long = tiff([CAMERA, (ORIENTATION, SHORT, (6,))], offset=60000)
    yield "jpeg/exif-split-far.jpg", with_segments(scene, app1(long[:30000]), app1(long[30000:]))
    for length in (1, 2, 3, 5, 8):
        start = b"II*\0\x08\0\0\0"[:length]
        yield f"jpeg/exif-of-{length}-bytes-exif-6.jpg", with_segments(scene, app1(start), app1(exif(6)))
    yield "jpeg/exif-tiny-prefix-exif-6.jpg", with_segments(scene, segment(0xE1, b"Exif\0"), app1(exif(6)))
    density: list[Entry] = [(0x011A, RATIONAL, ((144, 1),)), (0x011B, RATIONAL, ((144, 1),)), (0x0128, SHORT, (2,))]
    sized = directory([(0xA002, LONG, (12,)), (0xA003, LONG, (8,))], "<", 78)
    dense = tiff([*density, (0x8769, LONG, (78,))]) + sized
    yield "jpeg/exif-density.jpg", with_segments(scene, app1(dense))
    # XMP
    yield "jpeg/xmp-6.jpg", with_segments(scene, segment(0xE1, XMP_PREFIX + xmp(6)))
    yield "jpeg/xmp-6-exif-3.jpg", with_segments(scene, segment(0xE1, XMP_PREFIX + xmp(6)), app1(exif(3)))
    yield "jpeg/exif-3-xmp-6.jpg", with_segments(scene, app1(exif(3)), segment(0xE1, XMP_PREFIX + xmp(6)))
    yield "jpeg/exif-camera-xmp-6.jpg", with_segments(scene, app1(tiff([CAMERA])), segment(0xE1, XMP_PREFIX + xmp(6)))
    yield "jpeg/exif-9-xmp-6.jpg", with_segments(scene, app1(exif(9)), segment(0xE1, XMP_PREFIX + xmp(6)))
    yield "jpeg/exif-broken-xmp-6.jpg", with_segments(scene, app1(b"XX*\0"), segment(0xE1, XMP_PREFIX + xmp(6)))
    # several pictures in one file
    first = with_segments(scene, app1(exif(6)))
    yield "jpeg/mpo-of-two.jpg", mpo(first, with_segments(scene, app1(exif(3))))
    yield "jpeg/mpo-plain.jpg", mpo(scene, scene)
    yield "jpeg/mpo-second-missing.jpg", mpo(first, scene)[: -len(scene) // 2]
    yield "jpeg/mpo-broken-index.jpg", with_segments(first, segment(0xE2, b"MPF\0" + b"II*\0\x08\0\0\0\xff\xff\x01"))
    yield "jpeg/mpo-index-text.jpg", with_segments(first, segment(0xE2, b"MPF\0" + b"no index" * 9))
    yield "jpeg/two-behind-each-other.jpg", first + with_segments(scene, app1(exif(3)))
    # other metadata
    yield "jpeg/icc-garbage.jpg", with_segments(first, segment(0xE2, b"ICC_PROFILE\0\x01\x01" + b"no profile" * 30))
    yield "jpeg/icc-cut.jpg", with_segments(first, segment(0xE2, b"ICC_PROFILE\0\x01\x01" + bytes(20)))
    yield "jpeg/icc-without-number.jpg", with_segments(first, segment(0xE2, b"ICC_PROFILE\0"))
    yield "jpeg/icc-one-of-three.jpg", with_segments(first, segment(0xE2, b"ICC_PROFILE\0\x02\x03" + bytes(200)))
    yield "jpeg/photoshop-cut.jpg", with_segments(first, segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0"))
    yield "jpeg/photoshop-short.jpg", with_segments(first, segment(0xED, b"Photoshop 3.0\x008BIM"))
    yield (
        "jpeg/photoshop-large.jpg",
        with_segments(first, segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\xff\xff\xff\xff1234")),
    )
    yield (
        "jpeg/photoshop-empty-resolution.jpg",
        with_segments(first, segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\0")),
    )
    yield "jpeg/jfif-short.jpg", bare[:2] + segment(0xE0, b"JFIF\0") + bare[2:]
    yield "jpeg/adobe-short.jpg", with_segments(first, segment(0xEE, b"Adobe"))
    yield "jpeg/adobe-tiny.jpg", with_segments(first, segment(0xEE, b"Adobe\0"))
    yield "jpeg/flashpix.jpg", with_segments(first, segment(0xE2, b"FPXR\0"))
    yield "jpeg/comment-long.jpg", with_segments(first, segment(0xFE, bytes(65000)))
    yield "jpeg/many-segments.jpg", with_segments(first, *[segment(0xEF, bytes(50))] * 300)
    yield "jpeg/length-0.jpg", with_segments(first, b"\xff\xe5\0\0")
    yield "jpeg/length-1.jpg", with_segments(first, b"\xff\xe5\0\x01")
    yield "jpeg/app1-longer-than-file.jpg", with_segments(scene, b"\xff\xe1\xff\xff" + PREFIX + exif())
    yield "jpeg/app5-longer-than-file.jpg", with_segments(first, b"\xff\xe5\xff\xff")
    yield "jpeg/fill-bytes.jpg", with_segments(first, b"\xff" * 20)
    yield "jpeg/garbage-between.jpg", with_segments(first, bytes(10))
    yield "jpeg/garbage-between-ff00.jpg", with_segments(first, b"\x01\xff\x00\x02\xff\x00")
    yield "jpeg/reserved-marker.jpg", with_segments(first, segment(0xF5, bytes(10)))
    yield "jpeg/restart-marker-in-header.jpg", with_segments(first, b"\xff\xd3")
    yield "jpeg/tem-marker.jpg", with_segments(first, b"\xff\x01")
    yield "jpeg/reserved-02-marker.jpg", with_segments(first, segment(0x02, bytes(10)))
    yield "jpeg/garbage-before.jpg", b"\0\0" + first
    yield "jpeg/line-break-before.jpg", b"\r\n" + first
    # colours
    for name in ("grey.jpg", "cmyk-adobe.jpg", "cmyk-plain.jpg", "ycck.jpg", "rgb.jpg", "444.jpg", "restarts.jpg"):
        yield f"jpeg/{name}", fixture(name)
        yield f"jpeg/exif-6-{name}", with_segments(fixture(name), app1(exif()))


def mpo(first: bytes, second: bytes) -> bytes:
    """Two JPEGs in the Multi-Picture Format."""
    index_length = 2 + 2 + 4 + 8 + 2 + 3 * 12 + 4 + 32
    offset = 2 + 18 + 8  # where the index's TIFF structure begins
    entry = 8 + 2 + 3 * 12 + 4
    size = len(first) + index_length
    index = b"II*\0\x08\0\0\0" + struct.pack("<H", 3)
    index += struct.pack("<HHL4s", 0xB000, UNDEFINED, 4, b"0100") + struct.pack("<HHLL", 0xB001, LONG, 1, 2)
    index += struct.pack("<HHLL", 0xB002, UNDEFINED, 32, entry) + bytes(4)
    index += struct.pack("<LLLHH", 0x20030000, size, 0, 0, 0)
    index += struct.pack("<LLLHH", 0x00000000, len(second), size - offset, 0, 0)
    assert len(segment(0xE2, b"MPF\0" + index)) == index_length
    return with_segments(first, segment(0xE2, b"MPF\0" + index)) + second


def _jpeg_damage() -> Iterator[tuple[str, bytes]]:
    for base in ("blocks.jpg", "blocks-progressive.jpg", "blocks-restarts.jpg", "blocks-grey.jpg"):
        whole, name = fixture(base), base.removesuffix(".jpg")
        turned = with_segments(whole, app1(exif()))
        yield f"jpeg/{name}.jpg", whole
        yield f"jpeg/{name}-without-end.jpg", whole[:-2]
        yield f"jpeg/{name}-with-half-its-end.jpg", whole[:-1]
        yield f"jpeg/{name}-turned-without-end.jpg", turned[:-2]
        for percent in (10, 25, 50, 75, 90, 99):
            yield f"jpeg/{name}-cut-{percent}.jpg", cut(whole, percent)
        yield f"jpeg/{name}-turned-cut-50.jpg", cut(turned, 50)
        yield f"jpeg/{name}-zeros-behind-50.jpg", cut(whole, 50) + bytes(len(whole) // 2)
        yield f"jpeg/{name}-end-behind-50.jpg", cut(whole, 50) + b"\xff\xd9"
        yield f"jpeg/{name}-garbage-behind.jpg", whole + b"\0garbage\xff" * 100
        middle = len(whole) * 3 // 4
        yield f"jpeg/{name}-hole.jpg", whole[:middle] + bytes(30) + whole[middle + 30 :]
    whole = fixture("blocks.jpg")
    for end in (3, 4, 10, 20, 100, 300, 600):
        yield f"jpeg/blocks-cut-at-{end}.jpg", whole[:end]
    scan = whole.index(b"\xff\xda")
    yield "jpeg/blocks-cut-before-scan.jpg", whole[:scan]
    yield "jpeg/blocks-cut-in-scan-header.jpg", whole[: scan + 6]
    yield "jpeg/blocks-cut-behind-scan-header.jpg", whole[: scan + 14]
    whole = fixture("blocks-progressive.jpg")
    scans = [at for at in range(len(whole) - 1) if whole[at : at + 2] == b"\xff\xda"]
    tables = [at for at in range(scans[0], len(whole) - 1) if whole[at : at + 2] == b"\xff\xc4"]
    for number, at in enumerate(scans[1:4], 2):
        yield f"jpeg/progressive-cut-before-scan-{number}.jpg", whole[:at]
        yield f"jpeg/progressive-cut-in-scan-header-{number}.jpg", whole[: at + 5]
    for number, at in enumerate(tables[:3], 1):
        yield f"jpeg/progressive-cut-in-table-{number}.jpg", whole[: at + 12]
        yield f"jpeg/progressive-cut-in-table-length-{number}.jpg", whole[: at + 3]
    yield "jpeg/progressive-exif-between-scans.jpg", whole[: tables[0]] + app1(exif()) + whole[tables[0] :]
    yield "jpeg/progressive-text-between-scans.jpg", whole[: scans[2]] + segment(0xFE, bytes(99)) + whole[scans[2] :]


def cut(data: bytes, percent: int) -> bytes:
    return data[: len(data) * percent // 100]


# PNG


def chunk(name: bytes, data: bytes, *, sum_is_right: bool = True) -> bytes:
    check = zlib.crc32(name + data) ^ (0 if sum_is_right else 1)
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", check)


def with_chunks(png: bytes, *chunks: bytes, before: bytes = b"IDAT", behind: bytes | None = None) -> bytes:
    at = 8
    while png[at + 4 : at + 8] != (behind or before):
        at += 12 + struct.unpack(">L", png[at : at + 4])[0]
    if behind:
        at += 12 + struct.unpack(">L", png[at : at + 4])[0]
    return png[:at] + b"".join(chunks) + png[at:]


def chunks_of(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(png):
        length = struct.unpack(">L", png[at : at + 4])[0]
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _png() -> Iterator[tuple[str, bytes]]:
    scene = fixture("scene.png")
    yield "png/plain.png", scene
    for value in range(1, 9):
        yield f"png/exif-{value}.png", with_chunks(scene, chunk(b"eXIf", exif(value)))
        yield f"png/exif-behind-{value}.png", with_chunks(scene, chunk(b"eXIf", exif(value)), before=b"IEND")
    for name, data in odd_exif():
        yield f"png/exif-{name}.png", with_chunks(scene, chunk(b"eXIf", data))
    for place, before in (("before", b"IDAT"), ("behind", b"IEND")):
        yield f"png/prefix-{place}.png", with_chunks(scene, chunk(b"eXIf", PREFIX + exif()), before=before)
        yield f"png/prefix-twice-{place}.png", with_chunks(scene, chunk(b"eXIf", PREFIX * 2 + exif()), before=before)
        yield (
            f"png/wrong-sum-{place}.png",
            with_chunks(scene, chunk(b"eXIf", exif(), sum_is_right=False), before=before),
        )
        yield f"png/xmp-{place}.png", with_chunks(scene, xmp_chunk(6), before=before)
        yield f"png/broken-{place}.png", with_chunks(scene, chunk(b"eXIf", b"XX*\0" + bytes(30)), before=before)
        yield f"png/empty-{place}.png", with_chunks(scene, chunk(b"eXIf", b""), before=before)
        for key in (b"exif", b"APP1"):
            profile = b"\n" + key + f"\n{len(exif()) + 6:8}\n{(PREFIX + exif()).hex()}\n".encode()
            raw = b"Raw profile type " + key + b"\0"
            yield (
                f"png/raw-profile-{key.decode()}-{place}.png",
                with_chunks(scene, chunk(b"tEXt", raw + profile), before=before),
            )
            yield (
                f"png/raw-profile-z-{key.decode()}-{place}.png",
                with_chunks(scene, chunk(b"zTXt", raw + b"\0" + stored(profile)), before=before),
            )
        yield (
            f"png/raw-profile-broken-{place}.png",
            with_chunks(scene, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 12\nno hex"), before=before),
        )
        yield (
            f"png/text-named-exif-{place}.png",
            with_chunks(scene, chunk(b"tEXt", b"exif\0" + PREFIX + exif()), before=before),
        )
    first, second = chunk(b"eXIf", exif(6)), chunk(b"eXIf", exif(3))
    yield "png/exif-6-exif-3.png", with_chunks(scene, first, second)
    yield "png/exif-6-before-exif-3-behind.png", with_chunks(with_chunks(scene, first), second, before=b"IEND")
    yield "png/exif-broken-exif-3.png", with_chunks(scene, chunk(b"eXIf", b"XX"), second)
    yield "png/exif-camera-exif-3.png", with_chunks(scene, chunk(b"eXIf", tiff([CAMERA])), second)
    yield "png/exif-wrong-sum-exif-3.png", with_chunks(scene, chunk(b"eXIf", exif(6), sum_is_right=False), second)
    yield "png/exif-6-xmp-3.png", with_chunks(scene, first, xmp_chunk(3))
    yield "png/exif-camera-xmp-6.png", with_chunks(scene, chunk(b"eXIf", tiff([CAMERA])), xmp_chunk(6))
    yield "png/exif-behind-end.png", scene + first
    yield "png/exif-before-palette.png", with_chunks(fixture("palette.png"), first, before=b"PLTE")
    yield "png/grey-12-in-16-significant-bits.png", with_chunks(fixture("grey-12-in-16.png"), chunk(b"sBIT", b"\x0c"))
    parts = chunks_of(scene)
    data = b"".join(body for name, body in parts if name == b"IDAT")
    halves = [chunk(b"IDAT", data[:30]), chunk(b"IDAT", data[30:])]
    yield "png/exif-between-data.png", without(scene, b"IDAT", (halves[0], first, halves[1]))
    yield "png/text-between-data.png", without(scene, b"IDAT", (halves[0], chunk(b"tEXt", b"a\0b"), halves[1]))
    yield "png/data-in-parts.png", without(scene, b"IDAT", [chunk(b"IDAT", data[i : i + 3]) for i in range(0, 999, 3)])
    yield "png/empty-data-first.png", without(scene, b"IDAT", (chunk(b"IDAT", b""), *halves))
    yield "png/empty-data-last.png", without(scene, b"IDAT", (*halves, chunk(b"IDAT", b"")))
    for name in (
        "palette.png", "palette-alpha.png", "palette-2-bits.png", "grey.png", "grey-alpha.png", "grey-1-bit.png",
        "grey-16.png", "rgb-16.png", "rgba-16.png", "grey-alpha-16.png", "grey-transparent.png", "rgb-transparent.png",
        "grey-16-transparent.png", "grey-12-in-16.png", "rgb-12-in-16.png", "alpha.png", "interlaced.png",
        "animated.png", "animated-apart.png", "animated-part.png"
    ):  # fmt: skip
        yield f"png/{name}", fixture(name)
        yield f"png/exif-6-{name}", with_chunks(fixture(name), chunk(b"eXIf", exif()))


def without(png: bytes, name: bytes, instead: list[bytes] | tuple[bytes, ...] = ()) -> bytes:
    """The chunks of one name replaced by others, at the place of the first."""
    out, numbers = png[:8], count()
    for other, data in chunks_of(png):
        if other != name:
            out += chunk(other, data)
        elif next(numbers) == 0:
            out += b"".join(instead)
    return out


def xmp_chunk(orientation: int) -> bytes:
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation))


def _png_metadata() -> Iterator[tuple[str, bytes]]:
    """Chunks that say nothing about the pixels, broken, before the pixels and behind them."""
    scene = with_chunks(fixture("scene.png"), chunk(b"eXIf", exif()))
    bomb = zlib.compress(bytes(2 << 20), 9)
    broken = {
        "text": chunk(b"tEXt", b"Comment\0fine"),
        "text-wrong-sum": chunk(b"tEXt", b"Comment\0fine", sum_is_right=False),
        "text-without-zero": chunk(b"tEXt", b"Comment"),
        "text-empty": chunk(b"tEXt", b""),
        "ztxt-garbage": chunk(b"zTXt", b"Comment\0\0no zlib"),
        "ztxt-method": chunk(b"zTXt", b"Comment\0\x07no zlib"),
        "ztxt-bomb": chunk(b"zTXt", b"Comment\0\0" + bomb),
        "itxt-bomb": chunk(b"iTXt", b"Comment\0\x01\0\0\0" + bomb),
        "itxt-not-utf8": chunk(b"iTXt", b"Comment\0\0\0\0\0\xff\xfe"),
        "itxt-short": chunk(b"iTXt", b"Comment\0"),
        "icc-garbage": chunk(b"iCCP", b"name\0\0" + stored(b"no profile" * 30)),
        "icc-no-zlib": chunk(b"iCCP", b"name\0\0no zlib"),
        "icc-method": chunk(b"iCCP", b"name\0\x05no zlib"),
        "icc-bomb": chunk(b"iCCP", b"name\0\0" + bomb),
        "icc-empty": chunk(b"iCCP", b""),
        "icc-wrong-sum": chunk(b"iCCP", b"name\0\0" + stored(b"no profile" * 30), sum_is_right=False),
        "gamma-short": chunk(b"gAMA", b"\0"),
        "chroma-short": chunk(b"cHRM", bytes(5)),
        "srgb-empty": chunk(b"sRGB", b""),
        "size-short": chunk(b"pHYs", b"\0"),
        "time-short": chunk(b"tIME", b"\0"),
        "background-long": chunk(b"bKGD", bytes(99)),
        "animation-short": chunk(b"acTL", b"\0"),
        "animation-none": chunk(b"acTL", bytes(8)),
        "frame-without-animation": chunk(b"fcTL", bytes(3)),
        "frame-too-large": chunk(b"acTL", struct.pack(">LL", 1, 0))
        + chunk(b"fcTL", struct.pack(">LLLLLHHBB", 0, 99, 99, 9, 9, 1, 1, 0, 0)),
        "frame-out-of-order": chunk(b"acTL", struct.pack(">LL", 1, 0))
        + chunk(b"fcTL", struct.pack(">LLLLLHHBB", 7, 24, 16, 0, 0, 1, 1, 0, 0)),
        "unknown": chunk(b"abCd", b"hello"),
        "unknown-wrong-sum": chunk(b"abCd", b"hello", sum_is_right=False),
        "unknown-critical": chunk(b"ABCD", b"hello"),
        "unknown-critical-wrong-sum": chunk(b"ABCD", b"hello", sum_is_right=False),
        "unknown-reserved-bit": chunk(b"abcd", b"hello"),
        "unknown-method": chunk(b"read", b"hello"),
        "unknown-no-letters": chunk(b"a1-d", b"hello"),
        "unknown-zeros": bytes(12),
        "palette-in-colour": chunk(b"PLTE", bytes(9)),
        "palette-odd": chunk(b"PLTE", bytes(10)),
        "transparency-short": chunk(b"tRNS", b"\0"),
        "transparency-wrong-sum": chunk(b"tRNS", b"\0\xff\0\0\0\0", sum_is_right=False),
    }
    for name, one in broken.items():
        yield f"png/{name}-before.png", with_chunks(scene, one)
        yield f"png/{name}-behind.png", with_chunks(scene, one, before=b"IEND")
    yield "png/many-texts.png", with_chunks(scene, *[chunk(b"tEXt", b"Comment\0" + bytes(99))] * 2000)
    yield "png/many-unknown.png", with_chunks(scene, *[chunk(b"abCd", b"x")] * 5000)
    yield "png/animation-behind.png", with_chunks(scene, chunk(b"acTL", struct.pack(">LL", 2, 0)), before=b"IEND")


def _png_damage() -> Iterator[tuple[str, bytes]]:
    scene = with_chunks(fixture("scene.png"), chunk(b"eXIf", exif()))
    yield "png/without-end.png", scene[:-12]
    yield "png/with-half-its-end.png", scene[:-5]
    yield "png/end-wrong-sum.png", scene[:-1] + b"\0"
    yield "png/garbage-behind.png", scene + b"garbage" * 50
    yield "png/another-behind.png", scene + fixture("scene.png")
    for name in (b"IHDR", b"IDAT"):
        data = dict(chunks_of(scene))[name]
        yield f"png/wrong-sum-of-{name.decode()}.png", without(scene, name, [chunk(name, data, sum_is_right=False)])
    palette = fixture("palette-alpha.png")
    for name in (b"PLTE", b"tRNS"):
        data = dict(chunks_of(palette))[name]
        yield f"png/wrong-sum-of-{name.decode()}.png", without(palette, name, [chunk(name, data, sum_is_right=False)])
    yield "png/palette-missing.png", without(palette, b"PLTE")
    yield "png/palette-too-short.png", without(palette, b"PLTE", [chunk(b"PLTE", bytes(range(6)))])
    yield "png/transparency-too-long.png", without(palette, b"tRNS", [chunk(b"tRNS", b"\xff" * 300)])
    data = dict(chunks_of(scene))[b"IDAT"]
    pixels = zlib.decompress(data)
    changed = {
        "adler-wrong": data[:-1] + bytes([data[-1] ^ 1]),
        "adler-missing": data[:-4],
        "more-behind-zlib": data + b"garbage",
        "rows-missing": stored(pixels[: len(pixels) // 2]),
        "rows-too-many": stored(pixels * 2),
        "filter-unknown": stored(pixels[:-73] + b"\x09" + pixels[-72:]),
        "not-zlib": b"no zlib at all",
        "empty": b"",
    }
    for name, body in changed.items():
        yield f"png/data-{name}.png", without(scene, b"IDAT", [chunk(b"IDAT", body)])
    length = struct.pack(">L", len(data))
    yield "png/data-length-too-long.png", scene.replace(length + b"IDAT", b"\0\0\xff\xff" + b"IDAT")
    yield "png/data-length-too-short.png", scene.replace(length + b"IDAT", b"\0\0\0\x20" + b"IDAT")
    yield "png/data-length-negative.png", scene.replace(length + b"IDAT", b"\xff\xff\xff\xff" + b"IDAT")
    yield "png/exif-length-too-long.png", scene.replace(struct.pack(">L", 26) + b"eXIf", b"\0\xff\xff\xffeXIf")
    for base in ("blocks.png", "blocks-interlaced.png", "blocks-alpha.png"):
        whole, name = fixture(base), base.removesuffix(".png")
        yield f"png/{name}.png", whole
        for percent in (10, 25, 50, 75, 90, 99):
            yield f"png/{name}-cut-{percent}.png", cut(whole, percent)
        yield f"png/{name}-turned-cut-50.png", cut(with_chunks(whole, chunk(b"eXIf", exif())), 50)
        middle = len(whole) * 3 // 4
        yield f"png/{name}-hole.png", whole[:middle] + bytes(30) + whole[middle + 30 :]
        body = b"".join(data for kind, data in chunks_of(whole) if kind == b"IDAT")
        pieces = [chunk(b"IDAT", body[i : i + 500]) for i in range(0, len(body), 500)]
        in_parts = without(whole, b"IDAT", pieces)
        yield f"png/{name}-parts-cut-50.png", cut(in_parts, 50)
        pieces[len(pieces) // 2] = pieces[len(pieces) // 2][:-1] + b"!"
        yield f"png/{name}-parts-wrong-sum.png", without(whole, b"IDAT", pieces)
    for end in (8, 20, 33, 40, 45, 60):
        yield f"png/blocks-cut-at-{end}.png", fixture("blocks.png")[:end]


# WebP


def riff(*chunks: tuple[bytes, bytes], size: int | None = None, padded: bool = True) -> bytes:
    body = b"".join(
        name + struct.pack("<L", len(data)) + data + (b"\0" if padded and len(data) % 2 else b"")
        for name, data in chunks
    )
    return b"RIFF" + struct.pack("<L", len(body) + 4 if size is None else size) + b"WEBP" + body


def riff_chunks(webp: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 12
    while at < len(webp):
        length = struct.unpack("<L", webp[at + 4 : at + 8])[0]
        found.append((webp[at : at + 4], webp[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


ALPHA, EXIF, XMP, ICC = 0x10, 0x08, 0x04, 0x20


def vp8x(flags: int, width: int = 24, height: int = 16) -> tuple[bytes, bytes]:
    return b"VP8X", bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def _webp() -> Iterator[tuple[str, bytes]]:
    lossy, lossless = riff_chunks(fixture("lossy.webp")), riff_chunks(fixture("lossless.webp"))
    yield "webp/lossy.webp", fixture("lossy.webp")
    yield "webp/lossless.webp", fixture("lossless.webp")
    for name, image in (("lossy", lossy), ("lossless", lossless)):
        for value in range(1, 9):
            yield f"webp/{name}-exif-{value}.webp", riff(vp8x(EXIF), *image, (b"EXIF", exif(value)))
            yield f"webp/{name}-prefix-{value}.webp", riff(vp8x(EXIF), *image, (b"EXIF", PREFIX + exif(value)))
    for name, data in odd_exif():
        yield f"webp/exif-{name}.webp", riff(vp8x(EXIF), *lossless, (b"EXIF", data))
    block = (b"EXIF", exif())
    yield "webp/prefix-twice.webp", riff(vp8x(EXIF), *lossless, (b"EXIF", PREFIX * 2 + exif()))
    yield "webp/exif-before.webp", riff(vp8x(EXIF), block, *lossless)
    yield "webp/exif-without-flag.webp", riff(vp8x(0), *lossless, block)
    yield "webp/exif-without-vp8x.webp", riff(*lossless, block)
    yield "webp/exif-flag-without-exif.webp", riff(vp8x(EXIF), *lossless)
    yield "webp/exif-6-exif-3.webp", riff(vp8x(EXIF), *lossless, block, (b"EXIF", exif(3)))
    yield "webp/exif-broken-exif-3.webp", riff(vp8x(EXIF), *lossless, (b"EXIF", b"XX"), (b"EXIF", exif(3)))
    yield "webp/xmp-6.webp", riff(vp8x(XMP), *lossless, (b"XMP ", xmp(6)))
    yield "webp/exif-6-xmp-3.webp", riff(vp8x(EXIF | XMP), *lossless, block, (b"XMP ", xmp(3)))
    yield "webp/exif-camera-xmp-3.webp", riff(vp8x(EXIF | XMP), *lossless, (b"EXIF", tiff([CAMERA])), (b"XMP ", xmp(3)))
    yield "webp/unknown-chunk.webp", riff(vp8x(EXIF), (b"abcd", b"hello!"), *lossless, (b"WXYZ", b"12"), block)
    yield "webp/icc-garbage.webp", riff(vp8x(EXIF | ICC), (b"ICCP", b"no profile" * 30), *lossless, block)
    yield "webp/icc-behind.webp", riff(vp8x(EXIF | ICC), *lossless, (b"ICCP", b"no profile" * 30), block)
    yield "webp/icc-flag-without-icc.webp", riff(vp8x(EXIF | ICC), *lossless, block)
    yield "webp/not-padded.webp", riff(vp8x(EXIF), *lossless, block, (b"abcd", b"odd"), padded=False)
    yield "webp/vp8x-other-size.webp", riff(vp8x(EXIF, 99, 99), *lossless, block)
    yield "webp/alpha-lossless.webp", fixture("alpha-lossless.webp")
    yield "webp/alpha-lossy.webp", fixture("alpha-lossy.webp")
    alpha = riff_chunks(fixture("alpha-lossy.webp"))
    yield "webp/exif-6-alpha-lossy.webp", riff(vp8x(EXIF | ALPHA), *alpha[1:], block)
    yield "webp/animated.webp", fixture("animated.webp")
    animated = riff_chunks(fixture("animated.webp"))
    flags = animated[0][1][0] | EXIF
    yield "webp/exif-6-animated.webp", riff((b"VP8X", bytes([flags]) + animated[0][1][1:]), *animated[1:], block)
    yield "webp/animated-part.webp", fixture("animated-part.webp")


def _webp_damage() -> Iterator[tuple[str, bytes]]:
    scene = riff(vp8x(EXIF), *riff_chunks(fixture("lossless.webp")), (b"EXIF", exif()))
    yield "webp/garbage-behind.webp", scene + b"garbage!" * 50
    yield "webp/one-byte-behind.webp", scene + b"\0"
    size = len(scene) - 8
    for name, other in (("small", size - 10), ("large", size + 1000), ("odd", size + 1), ("zero", 0)):
        yield f"webp/size-too-{name}.webp", scene[:4] + struct.pack("<L", other) + scene[8:]
    yield "webp/exif-cut.webp", scene[:-10]
    yield "webp/exif-length-too-long.webp", scene[:-30] + struct.pack("<L", 9999) + scene[-26:]
    for base in ("blocks-lossy.webp", "blocks-lossless.webp", "blocks-alpha.webp"):
        whole, name = fixture(base), base.removesuffix(".webp")
        yield f"webp/{name}.webp", whole
        for percent in (10, 25, 50, 75, 90, 99):
            yield f"webp/{name}-cut-{percent}.webp", cut(whole, percent)
        image = [part for part in riff_chunks(whole) if part[0] != b"VP8X"]
        before = riff(vp8x(EXIF | (ALPHA if "alpha" in name else 0), 96, 64), (b"EXIF", exif()), *image)
        yield f"webp/{name}-turned-cut-75.webp", cut(before, 75)
        middle = len(whole) * 3 // 4
        yield f"webp/{name}-hole.webp", whole[:middle] + bytes(30) + whole[middle + 30 :]
    animated = fixture("blocks-animated.webp")
    for percent in (25, 50, 75, 99):
        yield f"webp/animated-cut-{percent}.webp", cut(animated, percent)
    for end in (12, 20, 30, 40):
        yield f"webp/cut-at-{end}.webp", fixture("blocks-lossy.webp")[:end]


# GIF, BMP, AVIF


def _gif() -> Iterator[tuple[str, bytes]]:
    for name in ("scene.gif", "transparent.gif", "interlaced.gif", "animated.gif", "animated-part.gif", "part.gif"):
        yield f"gif/{name}", fixture(name)
    scene = fixture("scene.gif")
    yield "gif/without-trailer.gif", scene[:-1]
    yield "gif/garbage-behind.gif", scene + b"garbage" * 30
    image = scene.index(b"\x2c\0\0\0\0")
    magic = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    yield "gif/xmp.gif", scene[:image] + b"\x21\xff\x0bXMP DataXMP" + xmp(6) + magic + scene[image:]
    yield "gif/comment.gif", scene[:image] + b"\x21\xfe\x05hello\0" + scene[image:]
    yield "gif/unknown-extension.gif", scene[:image] + b"\x21\x77\x05hello\0" + scene[image:]
    yield "gif/short-control.gif", scene[:image] + b"\x21\xf9\x01\0\0" + scene[image:]
    yield "gif/zeros-before-image.gif", scene[:image] + b"\0\0" + scene[image:]
    for base in ("blocks.gif", "blocks-interlaced.gif"):
        whole, name = fixture(base), base.removesuffix(".gif")
        yield f"gif/{name}.gif", whole
        for percent in (10, 25, 50, 75, 90, 99):
            yield f"gif/{name}-cut-{percent}.gif", cut(whole, percent)
        middle = len(whole) * 3 // 4
        yield f"gif/{name}-hole.gif", whole[:middle] + bytes(30) + whole[middle + 30 :]
    for percent in (25, 50, 75, 99):
        yield f"gif/animated-cut-{percent}.gif", cut(fixture("blocks-animated.gif"), percent)


def _bmp() -> Iterator[tuple[str, bytes]]:
    for name in ("scene.bmp", "palette.bmp", "alpha.bmp"):
        yield f"bmp/{name}", fixture(name)
    scene = fixture("scene.bmp")
    down = scene[:22] + struct.pack("<l", -16) + scene[26:]
    yield "bmp/top-down.bmp", down
    yield "bmp/garbage-behind.bmp", scene + b"garbage"
    for percent in (50, 90, 99):
        yield f"bmp/cut-{percent}.bmp", cut(scene, percent)
        yield f"bmp/top-down-cut-{percent}.bmp", cut(down, percent)


def _avif() -> Iterator[tuple[str, bytes]]:
    yield "avif/plain.avif", fixture("scene.avif")
    for value in range(2, 9):
        whole = fixture(f"boxes-{value}.avif")
        yield f"avif/boxes-{value}.avif", without_exif(whole)
        yield f"avif/boxes-{value}-exif-without-orientation.avif", whole
        yield f"avif/boxes-{value}-exif-{value}.avif", with_orientation(whole, value)
        yield f"avif/boxes-{value}-exif-1.avif", with_orientation(whole, 1)
        yield f"avif/exif-{value}.avif", with_orientation(fixture("exif.avif"), value)
    yield "avif/boxes-3-exif-6.avif", with_orientation(fixture("boxes-3.avif"), 6)
    for name in ("boxes-6", "exif"):
        whole = with_orientation(fixture(f"{name}.avif"), 6)
        start = whole.index(b"MM\0*")
        broken = {"zeros": bytes(8), "no-order": b"XX", "beyond": b"MM\0*\0\xf0\0\0", "far": b"MM\0*" + b"\xff" * 4}
        broken |= {"at-0": b"MM\0*" + bytes(4), "prefix-beyond": b"", "little": b"II*\0\x08\0\0\0\x02\0"}
        for fault, data in broken.items():
            yield f"avif/{name}-broken-{fault}.avif", whole[:start] + data + whole[start + len(data) :]
        far = whole.replace(b"\0\0\0\x06Exif\0\0MM", b"\0\0\xff\xffExif\0\0MM")
        assert far != whole
        yield f"avif/{name}-header-offset-beyond.avif", far
        yield f"avif/{name}-header-offset-0.avif", whole.replace(b"\0\0\0\x06Exif\0\0MM", bytes(4) + b"Exif\0\0MM")
    yield "avif/xmp-6.avif", fixture("xmp.avif")
    yield "avif/garbage-behind.avif", whole + b"garbage" * 10
    yield "avif/box-behind.avif", whole + struct.pack(">L4s", 16, b"free") + b"12345678"
    assert whole[36:40] == b"meta"
    for name, size in (("meta-4-gb", b"\xff\xff\xff\xf0"), ("meta-endless", b"\0\0\0\0")):
        yield f"avif/broken-{name}.avif", whole[:32] + size + whole[36:]
    huge = struct.pack(">L4sQ", 1, b"free", 0xFFFFFFFFFFFFFFFF)
    yield "avif/broken-box-behind.avif", whole + huge
    yield "avif/broken-box-first.avif", whole[:32] + huge + whole[32:]
    yield "avif/alpha.avif", fixture("alpha.avif")
    yield "avif/animated.avif", fixture("animated.avif")
    for percent in (10, 50, 90, 99):
        yield f"avif/cut-{percent}.avif", cut(fixture("blocks.avif"), percent)
    yield "avif/blocks.avif", fixture("blocks.avif")


def without_exif(avif: bytes) -> bytes:
    return avif.replace(b"Exif\0", b"Xxif\0", 1)


def with_orientation(avif: bytes, value: int) -> bytes:
    """The first entry of the Exif item, its camera, becomes an orientation."""
    camera = struct.pack(">HHLL", 0x010F, ASCII, 7, 26)
    assert avif.count(camera) == 1
    return avif.replace(camera, struct.pack(">HHLHH", ORIENTATION, SHORT, 1, value, 0))
