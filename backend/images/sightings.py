"""What is known of a photo's content, and how to tell whether its source still has the same.

Features are cached under the name of the content, not under its address: the file behind an address may be replaced. A
name is made of what the source says about the file (ETag, or date and length), otherwise of a digest of its bytes.
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
"""Age in seconds from which a modification date can be relied on. Dates count whole seconds, on some disks two: a file
that changes twice in that time may keep its date and length."""

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Sighting:
    """What was last seen at a place."""

    name: str
    """Of the content."""
    etag: str | None
    """The source's ETag, to be sent with the next request."""
    due: float
    """When the source must be asked again."""
    confirmed: float
    """When the source last confirmed the content."""
    is_trusted: bool = True
    """Whether the source reports changes of its content."""

    @property
    def nbytes(self) -> int:
        return 1000  # at most, with its key


def content_name(*facts: str) -> str:
    """A name of content, from facts about it. Other releases of this server or of Pillow may decode other pixels."""
    return sha256("\n".join((__version__, PIL.__version__, *facts)).encode(errors="surrogatepass")).hexdigest()


def digest_name(file: BinaryIO) -> str:
    """A name from all bytes of a file."""
    digest = sha256()
    file.seek(0)
    while block := file.read(_BLOCK):
        digest.update(block)
    return content_name("bytes", digest.hexdigest())


def answer_stamp(headers: Mapping[str, str]) -> str | None:
    """What an HTTP answer says about the state of its file, or None if that does not identify it.

    A date counts together with the length, and only once it is `SETTLED_SECONDS` old; an ETag beside a younger date may
    be derived from it.
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
    """An answer's ETag, unless it is empty or cannot be sent back."""
    etag = headers.get("ETag", "").strip()
    return etag if re.fullmatch(r'(?!(W/)?""$)[\x21-\x7e]{1,256}', etag) else None


def file_stamp(path: str, status: os.stat_result) -> str | None:
    """The same for a local file."""
    if time.time() - max(status.st_mtime, status.st_ctime) < SETTLED_SECONDS:
        return None
    return f"file {path} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
