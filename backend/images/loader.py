"""A task's image reference to pixels: uploads, local files, cloud URIs, plain addresses, data URIs."""

from __future__ import annotations

import base64
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from http import HTTPStatus
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import BinaryIO, Generic, Protocol, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

import numpy as np
import requests
from numpy.typing import NDArray
from urllib3.exceptions import HTTPError, ReadTimeoutError

from backend.http_client import DeadlineAdapter, connection_advice, new_session
from backend.images.allowlist import ImageHosts, RefusedHostError
from backend.images.data_uri import DataUriError, data_uri_content
from backend.images.decode import DecodedImage, ImageError, UndecodableError, decode_image
from backend.images.local_files import local_name, opened_below
from backend.images.memory_budget import MemoryBudget
from backend.images.sightings import (
    SETTLED_SECONDS,
    Sighting,
    answer_etag,
    answer_stamp,
    content_name,
    digest_name,
    file_stamp,
)
from backend.images.streaming_file import streaming_file
from backend.label_studio.auth import (
    AuthorizationError,
    LabelStudioAuth,
    NoAnswerError,
    as_called,
    origin,
    redirect_trouble,
    under,
)
from backend.label_studio.names import ToldNames
from backend.label_studio.references import cleaned, serves_images
from backend.prompts import ImageReference
from backend.settings import Settings
from skipclick.cache import ByteLru

_CLOUD_SCHEMES = {"s3": "s3", "s3a": "s3", "s3n": "s3", "gs": "gs", "azure-blob": "azure-blob"}
"""As they appear in task data, and as Label Studio resolves them: Hadoop and Spark have their own names for S3."""

_MAX_REDIRECTS = 5
_MAX_ADDRESS = 1 << 16
"""Characters of a reference that is not a data URI: parsing takes a step in Python for each."""
_CHUNK = 1 << 16
_SIGNATURE = re.compile(
    r"x-(amz|goog|oss|cos)-.+|(aws|oss)accesskeyid|googleaccessid|sign(ature)?|expires|policy|key-pair-id|token"
    r"|sig|s[vspetr]|srt|spr|sip|sdd|ske|sks|skt|skv|skoid|sktid",
    re.IGNORECASE,
)
"""Names of a query's fields in addresses that S3, Google, Azure, CloudFront, Aliyun and Tencent have signed."""
_SIGHTINGS_BYTES = 64 << 20
"""Memory for notes about photos, not for the photos: enough for 60,000 tasks."""

_UNCONFIRMED_SECONDS = 600.0
"""How long a photo seen before is still used while its source does not answer."""

_RETRY_SECONDS = 10.0
"""Pause before a source that did not answer is asked again."""

_BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)

T = TypeVar("T")

logger = logging.getLogger(__name__)


class UnreachableError(ImageError):
    """The source of an image does not answer now: it is down, busy, or too slow."""


@dataclass(frozen=True, eq=False)
class Look(Generic[T]):
    """A photo as it is now: either what was cached for it, or the photo itself."""

    name: str
    """Of its content: equal names mean equal pixels."""
    kept: T | None = None
    photo: DecodedImage | None = None
    asked: bool = True
    """Whether a request was made, or the photo decoded, for this."""


class ImageSource(Protocol):
    """Where the annotator gets images from."""

    def place(self, reference: ImageReference) -> str:
        """A name for where the image comes from; its content may change."""

    def recent(self, reference: ImageReference, unconfirmed: bool = False) -> str | None:
        """The name of the image's content, if it was seen recently. `unconfirmed`: also if it was seen so long ago that
        its source should be asked again, if possible."""

    def look(self, reference: ImageReference, find: Callable[[str], T | None], doubt: bool = False) -> Look[T]:
        """What `find` returns for the name of the image's current content, otherwise the image, oriented as the
        annotator sees it; call the photo's `release` after use. With `doubt` it is fetched in any case.

        Raises `ImageError`, and `MemoryError` if there is no room for it now.
        """

    def pixels(self, reference: ImageReference, name: str) -> NDArray[np.uint8]:
        """All pixels of the image that has this name, uint8 RGB (H, W, 3), oriented as the annotator sees it.

        Raises `ImageError`, also where the image is another one by now, and `MemoryError`.
        """


@dataclass(frozen=True, eq=False)
class _Opened:
    """A file that is about to be read. `stamp` identifies the file and its state; None if only its bytes can."""

    file: BinaryIO
    stamp: str | None = None
    etag: str | None = None
    is_local: bool = False


class ImageLoader:
    """Fetches and decodes. Caches no images and no connections, only the name of each image's content. Thread-safe."""

    def __init__(
        self,
        auth: LabelStudioAuth,
        *,
        max_bytes: int,
        max_pixels: int,
        memory_bytes: int = 2 << 30,
        timeout: float,
        hosts: ImageHosts,
        local_root: Path | None = None,
        enough: int | None = None,
        revalidate: float = 60.0,
        names: Callable[[], Sequence[str]] = list,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`memory_bytes`: for all photos together that are decoded or wait for the device. `hosts`: the hosts that may
        be called besides Label Studio. `local_root`: where the files of its local storage are, if this server has them
        too. `enough`: pixels of a side that the model needs, see `decode_image`. `revalidate`: seconds after which a
        source is asked whether its image is still the same. `names`: what Label Studio calls itself, see
        `label_studio/names.py`."""
        self._auth = auth
        self._names = names
        self._hosts = hosts
        self._local_root = local_root
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._enough = enough
        self._budget = MemoryBudget(memory_bytes, timeout)
        self._timeout = timeout
        self._revalidate = revalidate
        self._clock = clock
        self._sightings: ByteLru[Sighting] = ByteLru(_SIGHTINGS_BYTES)

    def place(self, reference: ImageReference) -> str:
        """See `ImageSource.place`. Label Studio resolves a cloud URI by the storage that the task came from, so that
        one URI may mean several photos."""
        reference = _canonical(reference)
        if (name := _inline_name(reference)) is not None:
            return name
        task = reference.task_id if _is_cloud(reference.url) else None
        facts = [self._auth.url, reference.url, task, reference.login, reference.password]
        return sha256(json.dumps(facts).encode()).hexdigest()

    def recent(self, reference: ImageReference, unconfirmed: bool = False) -> str | None:
        """See `ImageSource.recent`."""
        reference = _canonical(reference)
        if (name := _inline_name(reference)) is not None:
            return name
        known = self._sightings.peek(self.place(reference))
        if known is None:
            return None
        until = known.confirmed + _UNCONFIRMED_SECONDS if unconfirmed else known.due
        return known.name if self._clock() < until else None

    def look(self, reference: ImageReference, find: Callable[[str], T | None], doubt: bool = False) -> Look[T]:
        """See `ImageSource.look`.

        If a source does not answer, what was seen before remains valid for a while. A refusal takes effect at once.
        """
        reference = _canonical(reference)
        if (name := _inline_name(reference)) is not None:
            kept = find(name)
            return Look(name, kept, asked=False) if kept is not None else Look(name, photo=self.load(reference))
        place, begin = self.place(reference), self._clock()
        known = self._sightings.get(place)
        kept = find(known.name) if known is not None else None
        if known is None or kept is None:
            return self._look_anew(reference, place, begin, find)
        if begin < known.due and not doubt:
            return Look(known.name, kept, asked=False)
        try:
            return self._look_again(reference, place, begin, find, known, kept, doubt)
        except UnreachableError as error:
            if begin - known.confirmed > _UNCONFIRMED_SECONDS:
                raise
            logger.warning("the image of task %s is used as it was before: %s", reference.task_id, error)
            pause = max(self._revalidate, _RETRY_SECONDS)
            self._sightings.put(place, replace(known, due=self._clock() + pause))
            return Look(known.name, kept)
        except ImageError:
            self._sightings.put(place, replace(known, due=-math.inf, confirmed=-math.inf))
            raise

    def load(self, reference: ImageReference) -> DecodedImage:
        """The image as it is now, oriented as the annotator sees it; call its `release` after use.

        Raises `ImageError`, and `MemoryError` if there is no room for it now.
        """
        with self._opened(reference) as opened:
            assert opened is not None
            return self._decoded(opened.file, reference, self._enough)

    def pixels(self, reference: ImageReference, name: str) -> NDArray[np.uint8]:
        """See `ImageSource.pixels`."""
        reference = _canonical(reference)
        with self._opened(reference) as opened:
            assert opened is not None
            photo = self._decoded(opened.file, reference, enough=None)
            photo.release()  # the caller has its own budget for them
            names = [_inline_name(reference), None if opened.stamp is None else content_name(opened.stamp)]
            if name not in names and name != digest_name(opened.file):
                self._sightings.drop(self.place(reference))
                raise ImageError(f"{describe(reference.url)} was replaced by another image: click once more")
        return photo.pixels

    def _look_anew(
        self, reference: ImageReference, place: str, begin: float, find: Callable[[str], T | None]
    ) -> Look[T]:
        """A first look. Without a stamp the file is decoded while it arrives, and named once it is complete."""
        with self._opened(reference) as opened:
            assert opened is not None
            name = None if opened.stamp is None else content_name(opened.stamp)
            kept = find(name) if name is not None else None
            photo = self._decoded(opened.file, reference, self._enough) if kept is None else None
            if name is None:
                name = _name_of_decoded(opened.file)
        return self._seen(place, begin, opened, Look(name, kept, photo))

    def _look_again(
        self,
        reference: ImageReference,
        place: str,
        begin: float,
        find: Callable[[str], T | None],
        known: Sighting,
        kept: T,
        doubt: bool,
    ) -> Look[T]:
        """Has the photo changed? In `doubt` a source that says no is not trusted: its bytes are compared."""
        headers = {"Cache-Control": "no-cache"}
        if known.etag is not None and known.is_trusted and not doubt:
            headers["If-None-Match"] = known.etag  # no If-Modified-Since: many hosts only compare which is later
        with self._opened(reference, headers) as opened:
            if opened is None:  # not modified
                self._sightings.put(place, replace(known, due=begin + self._revalidate, confirmed=begin))
                return Look(known.name, kept)
            name = None if opened.stamp is None else content_name(opened.stamp)
            is_trusted = known.is_trusted and not (doubt and name == known.name)
            if name is None or not is_trusted:
                name = digest_name(opened.file)
            found = kept if name == known.name else find(name)
            photo = None
            if found is None:
                opened.file.seek(0)
                photo = self._decoded(opened.file, reference, self._enough)
        look = Look(name, found, photo, asked=photo is not None or not opened.is_local)
        return self._seen(place, begin, opened, look, is_trusted)

    def _seen(self, place: str, begin: float, opened: _Opened, look: Look[T], is_trusted: bool = True) -> Look[T]:
        """Note what was seen. The state of a local file costs nothing to look up, so that is done at every click."""
        lasts = self._revalidate
        if opened.is_local:
            lasts = 0.0 if opened.stamp is not None else min(lasts, SETTLED_SECONDS)
        self._sightings.put(place, Sighting(look.name, opened.etag, begin + lasts, begin, is_trusted))
        return look

    def _decoded(self, file: BinaryIO, reference: ImageReference, enough: int | None) -> DecodedImage:
        try:
            return decode_image(file, self._max_pixels, enough, self._budget)
        except UndecodableError as error:
            raise ImageError(f"{describe(reference.url)}: {error}") from None

    @contextmanager
    def _opened(self, reference: ImageReference, headers: Mapping[str, str] | None = None) -> Iterator[_Opened | None]:
        """The file behind a reference; None if its source answers `headers` with "not modified"."""
        reference = _canonical(reference)
        if (content := _inline_content(reference, self._max_bytes)) is not None:
            yield _Opened(BytesIO(content))
            return
        address = self._at_label_studio(_prepared(self._address(reference)))
        own = self._local_root is not None and self._auth.is_own(address)
        name = local_name(address, self._auth.url) if own else None
        if self._local_root is not None and name is not None:
            with opened_below(self._local_root, name, self._max_bytes) as (file, path, status):
                yield _Opened(file, file_stamp(str(path), status), is_local=True)
            return
        with self._download(address, reference, headers or {}) as opened:
            yield opened

    def _address(self, reference: ImageReference) -> str:
        """The http address behind a reference."""
        url = reference.url
        if _split(url).scheme.lower() in ("http", "https"):
            return url
        if _is_cloud(url):
            if reference.task_id is None:
                raise ImageError(
                    f"{describe(url)} needs the task's id to be resolved by Label Studio, and the request has none"
                )
            encoded = base64.urlsafe_b64encode(url.encode()).decode()
            return f"{self._auth.url}/tasks/{reference.task_id}/resolve/?fileuri={encoded}"
        if url.startswith("//"):  # of the scheme of the page that shows it
            return f"{urlsplit(self._auth.url).scheme}:{url}"
        if url.startswith("/"):
            prefix = urlsplit(self._auth.url).path
            path = url.removeprefix(prefix) if url.startswith(f"{prefix}/") else url
            return self._auth.url + path
        raise ImageError(
            f"{describe(url)} is not an image reference that this server understands: it takes paths of Label Studio "
            "such as /data/upload/..., http(s) addresses, s3://, gs:// and azure-blob:// URIs, and data: URIs"
        )

    def _at_label_studio(self, address: str) -> str:
        """The address at LABEL_STUDIO_URL of what an address under another name of Label Studio means; any other
        address as it is."""
        if self._auth.is_own(address) or self._hosts.lists(urlsplit(address).hostname or ""):
            return address
        paths = (under(name, address) for name in (self._auth.url, *self._names()))
        path = next((path for path in paths if path is not None), None)
        return address if path is None else _prepared(self._auth.url + path)

    @contextmanager
    def _download(
        self, address: str, reference: ImageReference, headers: Mapping[str, str]
    ) -> Iterator[_Opened | None]:
        """Follows redirects by hand: credentials go to the host that they are for, and no further; every host on the
        way must be one that may be called."""
        deadline = time.monotonic() + self._timeout
        first = origin(urlsplit(address))
        with (
            new_session(DeadlineAdapter(deadline)) as label_studio,
            new_session(self._hosts.adapter(deadline)) as elsewhere,
        ):
            for _ in range(_MAX_REDIRECTS + 1):
                own = self._auth.is_own(address)
                if own:
                    self._check_path(address)
                session = label_studio if own else elsewhere
                basic = _basic_auth(reference) if origin(urlsplit(address)) == first else None
                header = self._header() if own else basic
                answer = self._get(session, address, header, headers, deadline)
                if answer.status_code == 401 and own and header is not None:
                    renewed = self._header(refused=header)
                    if renewed != header:
                        answer.close()
                        answer = self._get(session, address, renewed, headers, deadline)
                with answer:
                    if answer.status_code == HTTPStatus.NOT_MODIFIED and "If-None-Match" in headers:
                        yield None
                        return
                    if not answer.is_redirect:
                        self._check_status(answer.status_code, address)
                        stamp = answer_stamp(answer.headers)
                        where = f"{reference.url} {_unsigned(address)}"
                        yield _Opened(
                            streaming_file(self._chunks(answer, address)),
                            None if stamp is None else f"{where} {stamp}",
                            answer_etag(answer.headers) if stamp is not None else None,
                        )
                        return
                    target = _redirected(address, answer.headers["Location"])
                    if own:
                        self._check_redirect(address, target)
                    address = self._at_label_studio(target)
        raise ImageError(f"{describe(reference.url)}: more than {_MAX_REDIRECTS} redirects")

    def _check_path(self, address: str) -> None:
        """Raise `ImageError` for an address of Label Studio that serves no images: a client who may request a mask must
        not use this to read what only this server's key may read."""
        path = under(self._auth.url, address) or urlsplit(address).path
        if not serves_images(path):
            raise ImageError(
                f"did not try GET {describe(address)}: Label Studio serves no images there; uploads are under "
                "/data/upload/, files of local storages under /data/local-files/"
            )

    def _check_redirect(self, address: str, target: str) -> None:
        """Raise `ImageError` for a redirect of Label Studio that reveals a wrong setting."""
        host = urlsplit(target).hostname or ""
        if host != urlsplit(address).hostname and self._hosts.lists(host):
            return
        trouble = redirect_trouble(self._auth.url, address, target)
        if trouble is not None:
            raise ImageError(f"tried GET {describe(address)}: {trouble}")

    def _header(self, refused: str | None = None) -> str | None:
        try:
            return self._auth.header(refused)
        except NoAnswerError as error:
            raise UnreachableError(str(error)) from None
        except AuthorizationError as error:
            raise ImageError(str(error)) from None

    def _get(
        self,
        session: requests.Session,
        address: str,
        header: str | None,
        headers: Mapping[str, str],
        deadline: float,
    ) -> requests.Response:
        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if header is not None:
                request.headers["Authorization"] = header
            return request

        wait = max(0.01, deadline - time.monotonic())
        try:
            return session.get(
                address, headers=headers, auth=authorize, timeout=wait, stream=True, allow_redirects=False
            )
        except RefusedHostError as error:
            raise ImageError(f"did not try GET {describe(address)}: {error}{_own_name_advice(address)}") from None
        except requests.Timeout:
            raise self._too_slow(address) from None
        except (OSError, ValueError) as error:  # all of requests' errors, missing certificate files, invalid host names
            kind = UnreachableError if isinstance(error, requests.ConnectionError) else ImageError
            place = "LABEL_STUDIO_URL" if self._auth.is_own(address) else "the address in the task's data"
            advice = connection_advice(error) or f"check {place}"
            raise kind(f"tried GET {describe(address)}: {type(error).__name__}; {advice}") from None

    def _check_status(self, status: int, address: str) -> None:
        if status == HTTPStatus.OK:
            return
        kind = UnreachableError if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _BUSY else ImageError
        raise kind(f"tried GET {describe(address)}: status {status}; {self._advice(status, address)}")

    def _chunks(self, answer: requests.Response, address: str) -> Iterator[bytes]:
        num_bytes = 0
        try:
            while chunk := answer.raw.read1(_CHUNK, decode_content=True):
                num_bytes += len(chunk)
                if num_bytes > self._max_bytes:
                    raise ImageError(f"{describe(address)} is larger than IMAGE_MAX_BYTES={self._max_bytes} allows")
                yield chunk
        except ReadTimeoutError:
            raise self._too_slow(address) from None
        except HTTPError as error:
            raise UnreachableError(
                f"tried GET {describe(address)}: the connection broke off ({type(error).__name__})"
            ) from None

    def _too_slow(self, address: str) -> ImageError:
        return UnreachableError(
            f"tried GET {describe(address)}: no answer within IMAGE_TIMEOUT={self._timeout:g} seconds"
        )

    def _advice(self, status: int, address: str) -> str:
        if not self._auth.is_own(address):
            return "the image's host refuses it to this server; check the address in the task's data"
        if status in (401, 403) and not self._auth.has_key:
            return "set LABEL_STUDIO_API_KEY to a personal access token (Label Studio, Account & Settings)"
        if status in (401, 403):
            return (
                "Label Studio refuses LABEL_STUDIO_API_KEY: use a personal access token (legacy tokens are "
                "off by default) of a user who may see the project"
            )
        if status == 404 and "/data/local-files/" in address:
            return "start Label Studio with LOCAL_FILES_SERVING_ENABLED=true and add the folder as local storage"
        return "check that LABEL_STUDIO_URL is the Label Studio that holds this task"


def describe(url: str) -> str:
    """A reference as shown in messages: without credentials and query (signatures of presigned addresses), and
    shortened."""
    if url.startswith("data:"):
        return f"{url[:40].split(',')[0]},... ({len(url)} characters)"
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that cannot be parsed"
    shown = f"{parts.scheme}://{host}{parts.path}" if host else parts.path
    return shown[:200]


def _inline_name(reference: ImageReference) -> str | None:
    """The name of an image that came with its reference, as a data URI or as a file; None for all others."""
    if reference.content is not None:
        return content_name("bytes", reference.url.removeprefix("sha256:"))  # as `digest_name` calls the same file
    if reference.url.startswith("data:"):
        return content_name("data", reference.url_digest)
    return None


def _inline_content(reference: ImageReference, max_bytes: int) -> bytes | None:
    """The file of an image that has an `_inline_name`."""
    if reference.content is not None:
        content = reference.content()
        if len(content) > max_bytes:
            raise ImageError(f"the image has {len(content)} bytes, more than IMAGE_MAX_BYTES={max_bytes} allows")
        return content
    return _data_uri(reference.url, max_bytes) if reference.url.startswith("data:") else None


def _is_cloud(url: str) -> bool:
    return url.partition(":")[0] in _CLOUD_SCHEMES


def _canonical(reference: ImageReference) -> ImageReference:
    """A reference as browsers read it, and a cloud scheme as Label Studio resolves it; the same object if nothing
    changes."""
    url = cleaned(reference.url)
    if len(url) > _MAX_ADDRESS and not url.startswith("data:"):
        raise ImageError(f"{describe(url[:_MAX_ADDRESS])} is an address of {len(url)} characters")
    if _is_cloud(url):
        scheme, _, rest = url.partition(":")
        url = f"{_CLOUD_SCHEMES[scheme]}:{rest}"
    return reference if url == reference.url else replace(reference, url=url)


def _name_of_decoded(file: BinaryIO) -> str:
    """The name of a decoded file. If its end, which decoding did not need, does not arrive, of all bytes before it."""
    with suppress(ImageError):
        file.seek(0, SEEK_END)
    return digest_name(file)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for an invalid one, which urlsplit does not
    except ValueError:
        raise ImageError(f"{describe(url)} is not a valid address") from None
    return parts


def _prepared(url: str) -> str:
    try:
        return as_called(url)
    except ValueError:
        raise ImageError(f"{describe(url)} is not a valid address") from None


def _redirected(address: str, location: str) -> str:
    try:
        target = urljoin(address, location)
    except ValueError:
        raise ImageError(f"{describe(address)} redirects to something that is not a valid address") from None
    if _split(target).scheme not in ("http", "https"):
        raise ImageError(f"{describe(target)}: a redirect to something other than http(s) is not followed")
    return _prepared(target)


def _unsigned(address: str) -> str:
    """An address without what differs whenever a cloud storage signs it. Everything else in its query may tell which
    file is meant."""
    place, mark, query = address.partition("?")
    kept = [one for one in query.split("&") if not _SIGNATURE.fullmatch(one.partition("=")[0])]
    return place + mark + "&".join(kept) if any(kept) else place


def _basic_auth(reference: ImageReference) -> str | None:
    if not reference.login:
        return None
    pair = f"{reference.login}:{reference.password or ''}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _data_uri(uri: str, max_bytes: int) -> bytes:
    try:
        return data_uri_content(uri, max_bytes)
    except DataUriError as error:
        raise ImageError(f"{describe(uri)} {error}") from None


def _own_name_advice(address: str) -> str:
    """Further advice where a path looks like one of Label Studio's."""
    if not re.search(r"/(data/(upload|local-files)|storage-data)/", urlsplit(address).path):
        return ""
    return (
        "; if it is Label Studio's own name, set LABEL_STUDIO_URL to where this server reaches Label Studio, and open "
        "Project > Settings > Model there once, so that it tells this server its name"
    )


def build_images(
    settings: Settings, auth: LabelStudioAuth, enough: int | None = None, names: ToldNames | None = None
) -> ImageLoader:
    """The image loader of these settings. `enough`: see `decode_image`. `names`: by default what a server with these
    settings was told."""
    return ImageLoader(
        auth,
        max_bytes=settings.image_max_bytes,
        max_pixels=settings.image_max_pixels,
        memory_bytes=settings.image_memory_bytes,
        timeout=settings.image_timeout,
        hosts=ImageHosts(settings.image_hosts, settings.allow_private_addresses),
        local_root=settings.local_files_root,
        enough=enough,
        revalidate=settings.image_revalidate_seconds,
        names=(names or ToldNames(settings.model_dir)).names,
    )
