"""What was seen of a photo, and how to tell whether its source still has the same one.

Features are kept by the name of what was seen, not by its address: the file behind an address may be replaced. A name
is made of what the source says about the file (ETag, or date and length), else of a digest of its bytes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import BinaryIO

import PIL

from skipclick import __version__

SETTLED_SECONDS = 2.0
"""Seconds after which a date of change says more than "just now". Dates count whole seconds, on some disks two: a file
that changes twice in that time may have the same date and length."""

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Sighting:
    """What was seen at a place."""

    name: str
    """Of the content."""
    etag: str | None
    """What the source called it, to be sent back with the next question."""
    due: float
    """When the source must be asked again."""
    confirmed: float
    """When the source last said that the content is this one."""
    is_trusted: bool = True
    """Whether the source tells when its content changes."""

    @property
    def nbytes(self) -> int:
        return 1000  # at most, with its key: names and marks are short


def content_name(*facts: str) -> str:
    """A name of content by facts about it. Other releases of this server or of Pillow may decode other pixels."""
    return sha256("\n".join((__version__, PIL.__version__, *facts)).encode(errors="surrogatepass")).hexdigest()


def digest_name(file: BinaryIO) -> str:
    """A name by all bytes of a file."""
    digest = sha256()
    file.seek(0)
    while block := file.read(_BLOCK):
        digest.update(block)
    return content_name("bytes", digest.hexdigest())


def answer_stamp(headers: Mapping[str, str]) -> str | None:
    """What an HTTP answer says about the state of its file, or None if that does not tell it from another one.

    A date counts with the length, and only once it is `SETTLED_SECONDS` old; an ETag beside a younger date may be
    made of that.
    """
    etag, modified = answer_etag(headers), headers.get("Last-Modified")
    if modified is not None:
        changed, now = _date(modified), _date(headers.get("Date", ""))
        if changed is None or now is None or (now - changed).total_seconds() < SETTLED_SECONDS:
            return None
    if etag is not None:
        return f"etag {etag}"
    return f"modified {modified} {headers.get('Content-Length')}" if modified is not None else None


def answer_etag(headers: Mapping[str, str]) -> str | None:
    """An answer's ETag, unless it says nothing or is too strange to be sent back."""
    etag = headers.get("ETag", "").strip()
    return etag if re.fullmatch(r'(?!(W/)?""$)[\x21-\x7e]{1,256}', etag) else None


def file_stamp(path: str, status: os.stat_result) -> str | None:
    """The same for a file of this machine."""
    if time.time() - max(status.st_mtime, status.st_ctime) < SETTLED_SECONDS:
        return None
    return f"file {path} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
