"""A task's image reference to pixels: uploads, local files, cloud URIs, plain addresses, data URIs."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from backend.images.allowlist import ImageHosts, RefusedHostError
from backend.images.data_uri import DataUriError, data_uri_content
from backend.images.decode import ImageError, Photo, UndecodableError, decode_image
from backend.images.http import PunctualAdapter
from backend.images.incoming import incoming
from backend.images.local_files import local_name, read_below
from backend.images.pixel_budget import PixelBudget
from backend.label_studio.auth import AuthorizationError, LabelStudioAuth, as_called, origin, redirect_trouble, under
from backend.label_studio.names import ToldNames
from backend.label_studio.references import cleaned
from backend.prompts import ImageReference
from backend.settings import Settings

_CLOUD_SCHEMES = ("s3", "gs", "azure-blob")
_MAX_REDIRECTS = 5
_CHUNK = 1 << 16
_PHOTOS_AT_ONCE = 4
"""Of the largest size, in memory as pixels; of smaller ones as many more."""


class ImageSource(Protocol):
    """Where the annotator gets images from."""

    def key(self, reference: ImageReference) -> str:
        """A name of the image's content: equal names mean equal pixels."""

    def load(self, reference: ImageReference) -> Photo:
        """The image, oriented as the annotator sees it; call its `release` when it has been looked at.

        Raises `ImageError`, and `MemoryError` where there is no room for it now.
        """


class ImageLoader:
    """Fetches and decodes. Keeps no image and no connection, so any thread may call it."""

    def __init__(
        self,
        auth: LabelStudioAuth,
        *,
        max_bytes: int,
        max_pixels: int,
        timeout: float,
        hosts: ImageHosts,
        local_root: Path | None = None,
        enough: int | None = None,
        names: Callable[[], Sequence[str]] = list,
    ) -> None:
        """`hosts`: who is called besides Label Studio. `local_root`: where files of its local storage lie, if this
        server has them too. `enough`: pixels of a side that the model needs, see `decode_image`. `names`: what Label
        Studio calls itself, see `names`."""
        self._auth = auth
        self._names = names
        self._hosts = hosts
        self._local_root = local_root
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._enough = enough
        self._budget = PixelBudget(_PHOTOS_AT_ONCE * max_pixels, timeout)
        self._timeout = timeout

    def key(self, reference: ImageReference) -> str:
        """Names the Label Studio and the reference; Label Studio does not change the file behind a
        reference."""
        return sha256(f"{self._auth.url} {cleaned(reference.url)}".encode()).hexdigest()

    def load(self, reference: ImageReference) -> Photo:
        """See `ImageSource.load`."""
        with self._opened(reference) as file:
            try:
                return decode_image(file, self._max_pixels, self._enough, self._budget)
            except UndecodableError as error:
                raise ImageError(f"{describe(reference.url)}: {error}") from None

    @contextmanager
    def _opened(self, reference: ImageReference) -> Iterator[BinaryIO]:
        reference = replace(reference, url=cleaned(reference.url))
        if reference.url.startswith("data:"):
            yield BytesIO(_data_uri(reference.url, self._max_bytes))
            return
        address = self._at_label_studio(_prepared(self._address(reference)))
        own = self._local_root is not None and self._auth.is_own(address)
        name = local_name(address, self._auth.url) if own else None
        if self._local_root is not None and name is not None:
            yield BytesIO(read_below(self._local_root, name, self._max_bytes))
            return
        with self._download(address, reference) as file:
            yield file

    def _address(self, reference: ImageReference) -> str:
        """The http address behind a reference."""
        url = reference.url
        scheme = _split(url).scheme.lower()
        if scheme in ("http", "https"):
            return url
        if scheme in _CLOUD_SCHEMES:
            if reference.task_id is None:
                raise ImageError(f"{describe(url)} needs the task's id to be resolved by Label Studio, and it has none")
            encoded = base64.urlsafe_b64encode(url.encode()).decode()
            return f"{self._auth.url}/tasks/{reference.task_id}/resolve/?fileuri={encoded}"
        if url.startswith("//"):  # of the scheme of the page that shows it
            return f"{urlsplit(self._auth.url).scheme}:{url}"
        if url.startswith("/"):
            prefix = urlsplit(self._auth.url).path
            path = url.removeprefix(prefix) if url.startswith(f"{prefix}/") else url
            return self._auth.url + path
        raise ImageError(
            f"{describe(url)} is no image reference that this server knows: it takes paths of Label Studio "
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
    def _download(self, address: str, reference: ImageReference) -> Iterator[BinaryIO]:
        """Follows redirects by hand: credentials go to the host that they are for, and no further; every host on the
        way must be one that may be called."""
        deadline = time.monotonic() + self._timeout
        first = origin(urlsplit(address))
        with _session(PunctualAdapter(deadline)) as label_studio, _session(self._hosts.adapter(deadline)) as elsewhere:
            for _ in range(_MAX_REDIRECTS + 1):
                own = self._auth.is_own(address)
                session = label_studio if own else elsewhere
                basic = _basic_auth(reference) if origin(urlsplit(address)) == first else None
                header = self._header() if own else basic
                answer = self._get(session, address, header, deadline)
                if answer.status_code == 401 and own and header is not None:
                    renewed = self._header(refused=header)
                    if renewed != header:
                        answer.close()
                        answer = self._get(session, address, renewed, deadline)
                with answer:
                    if not answer.is_redirect:
                        yield incoming(self._chunks(answer, address))
                        return
                    target = _redirected(address, answer.headers["Location"])
                    if own:
                        self._check_redirect(address, target)
                    address = self._at_label_studio(target)
        raise ImageError(f"{describe(reference.url)}: more than {_MAX_REDIRECTS} redirects")

    def _check_redirect(self, address: str, target: str) -> None:
        """Raise `ImageError` for a redirect of Label Studio that tells of a wrong setting."""
        host = urlsplit(target).hostname or ""
        if host != urlsplit(address).hostname and self._hosts.lists(host):
            return
        trouble = redirect_trouble(self._auth.url, address, target)
        if trouble is not None:
            raise ImageError(f"tried GET {describe(address)}: {trouble}")

    def _header(self, refused: str | None = None) -> str | None:
        try:
            return self._auth.header(refused)
        except AuthorizationError as error:
            raise ImageError(str(error)) from None

    def _get(self, session: requests.Session, address: str, header: str | None, deadline: float) -> requests.Response:
        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if header is not None:
                request.headers["Authorization"] = header
            return request

        wait = max(0.01, deadline - time.monotonic())
        try:
            return session.get(address, auth=authorize, timeout=wait, stream=True, allow_redirects=False)
        except RefusedHostError as error:
            raise ImageError(f"did not try GET {describe(address)}: {error}{_own_name_advice(address)}") from None
        except requests.Timeout:
            raise self._too_slow(address) from None
        except (requests.RequestException, ValueError) as error:  # ValueError: hosts that are no host names
            raise ImageError(
                f"tried GET {describe(address)}: {type(error).__name__}; "
                + ("check LABEL_STUDIO_URL" if self._auth.is_own(address) else "check the address in the task's data")
            ) from None

    def _chunks(self, answer: requests.Response, address: str) -> Iterator[bytes]:
        if answer.status_code != 200:
            advice = self._advice(answer.status_code, address)
            raise ImageError(f"tried GET {describe(address)}: status {answer.status_code}; {advice}")
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
            raise ImageError(f"tried GET {describe(address)}: it broke off ({type(error).__name__})") from None

    def _too_slow(self, address: str) -> ImageError:
        return ImageError(f"tried GET {describe(address)}: no answer within IMAGE_TIMEOUT={self._timeout:g} seconds")

    def _advice(self, status: int, address: str) -> str:
        if not self._auth.is_own(address):
            return "the host of the image does not give it to this server; check the address in the task's data"
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
    """A reference fit for messages: no credentials, no query (signatures of presigned addresses), not
    endless."""
    if url.startswith("data:"):
        return f"{url[:40].split(',')[0]},... ({len(url)} characters)"
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that cannot be parsed"
    shown = f"{parts.scheme}://{host}{parts.path}" if host else parts.path
    return shown[:200]


def _session(adapter: PunctualAdapter) -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed, and refused, only when asked for
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
        raise ImageError(f"{describe(target)}: a redirect to something else than http(s) is not followed")
    return _prepared(target)


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
    """What else may be wrong where a path is one of Label Studio's."""
    if not re.search(r"/(data/(upload|local-files)|storage-data)/", urlsplit(address).path):
        return ""
    return (
        "; if it is Label Studio's own name, set LABEL_STUDIO_URL to where this server reaches Label Studio, and open "
        "Project > Settings > Model there once, so that it tells this server its name"
    )


def build_images(
    settings: Settings, auth: LabelStudioAuth, enough: int | None = None, names: ToldNames | None = None
) -> ImageLoader:
    """Where the server gets images from; for `enough` see `decode_image`. `names`: by default what a server with these
    settings was told."""
    return ImageLoader(
        auth,
        max_bytes=settings.image_max_bytes,
        max_pixels=settings.image_max_pixels,
        timeout=settings.image_timeout,
        hosts=ImageHosts(settings.image_hosts, settings.allow_private_addresses),
        local_root=settings.local_files_root,
        enough=enough,
        names=(names or ToldNames(settings.model_dir)).names,
    )
