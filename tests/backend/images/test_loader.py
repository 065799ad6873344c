"""Protects fetching: the right credentials to the right host and to no other, limits, and messages that help."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from backend.images.allowlist import ImageHosts
from backend.images.decode import ImageError
from backend.images.loader import ImageLoader, describe
from backend.label_studio.auth import LabelStudioAuth
from backend.prompts import ImageReference, file_digest, sent_image

LEGACY = "0123456789abcdef0123456789abcdef01234567"


def jwt(**claims: Any) -> str:
    parts = ({"alg": "HS256"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "signature"])


REFRESH = jwt(token_type="refresh", exp=9999999999)


def picture(width: int = 6, height: int = 4) -> bytes:
    file = BytesIO()
    Image.fromarray(np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)).save(file, "PNG")
    return file.getvalue()


class Host:
    """A web server on loopback that plays Label Studio, or any other host. `answers` maps paths to functions."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.valid: set[str] = set()
        self.renewals = 0
        self.life = 300.0
        host = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None: ...

            def do_GET(self) -> None:
                host.seen.append((self.path, self.headers.get("Authorization")))
                host.answers.get(urlsplit(self.path).path, host.not_found)(self)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                host.token(self, body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @staticmethod
    def not_found(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 404, b"")

    def token(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if body.get("refresh") != REFRESH:
            send(handler, 401, b"{}")
            return
        self.renewals += 1
        access = jwt(token_type="access", exp=time.time() + self.life, n=self.renewals)
        self.valid = {f"Bearer {access}"}
        send(handler, 200, json.dumps({"access": access}).encode())

    def guarded(self, handler: BaseHTTPRequestHandler) -> None:
        """The picture, for those who are authorized."""
        send(handler, *((200, picture()) if handler.headers.get("Authorization") in self.valid else (401, b"")))


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def free(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 200, picture())


@pytest.fixture
def label_studio() -> Iterator[Host]:
    host = Host()
    host.answers["/data/upload/1/a.png"] = host.guarded
    yield host
    host.server.shutdown()


@pytest.fixture
def elsewhere() -> Iterator[Host]:
    host = Host()
    host.answers["/a.png"] = free
    yield host
    host.server.shutdown()


def loader(host: Host | str, key: str | None = None, timeout: float = 5.0, **limits: int) -> ImageLoader:
    url = host if isinstance(host, str) else host.url
    limits = {"max_bytes": 1 << 20, "max_pixels": 10_000} | limits
    hosts = ImageHosts(("127.0.0.1",), allow_private=True)
    return ImageLoader(LabelStudioAuth(url, key, timeout), timeout=timeout, hosts=hosts, **limits)


def shape(images: ImageLoader, url: str, **credentials: str) -> tuple[int, ...]:
    return images.load(ImageReference(url, 7, **credentials)).pixels.shape


UPLOAD = "/data/upload/1/a.png"


def test_legacy_token(label_studio: Host) -> None:
    label_studio.valid = {f"Token {LEGACY}"}
    assert shape(loader(label_studio, LEGACY), UPLOAD) == (4, 6, 3)
    assert label_studio.renewals == 0


def test_access_token_is_used_as_it_is(label_studio: Host) -> None:
    access = jwt(token_type="access", exp=0)
    label_studio.valid = {f"Bearer {access}"}
    assert shape(loader(label_studio, access), UPLOAD) == (4, 6, 3)
    assert label_studio.renewals == 0


def test_personal_access_token_is_exchanged_once_and_kept(label_studio: Host) -> None:
    images = loader(label_studio, REFRESH)
    for _ in range(3):
        assert shape(images, UPLOAD) == (4, 6, 3)
    assert label_studio.renewals == 1
    assert all(header and header.startswith("Bearer ") and REFRESH not in header for _, header in label_studio.seen)


def test_access_token_is_renewed_before_it_ends(label_studio: Host) -> None:
    now = [1000.0]
    label_studio.life = 300 + now[0] - time.time()  # its `exp` is 300 s after the test's clock
    auth = LabelStudioAuth(label_studio.url, REFRESH, 5, clock=lambda: now[0])
    first = auth.header()
    now[0] += 200
    assert auth.header() == first
    now[0] += 75
    assert auth.header() != first
    assert label_studio.renewals == 2


def test_access_token_is_renewed_when_it_is_refused(label_studio: Host) -> None:
    images = loader(label_studio, REFRESH)
    shape(images, UPLOAD)
    label_studio.valid = set()  # Label Studio restarted with another secret
    assert shape(images, UPLOAD) == (4, 6, 3)
    assert label_studio.renewals == 2


def test_many_refused_threads_renew_once(label_studio: Host) -> None:
    auth = LabelStudioAuth(label_studio.url, REFRESH, 5)
    refused = auth.header()
    found = [auth.header(refused) for _ in range(5)]
    assert len(set(found)) == 1
    assert label_studio.renewals == 2


def test_an_expired_personal_access_token_says_what_to_do(label_studio: Host) -> None:
    other = jwt(token_type="refresh", exp=1)
    with pytest.raises(ImageError, match=r"POST .*/api/token/refresh/ .*status 401.*LABEL_STUDIO_API_KEY") as error:
        shape(loader(label_studio, other), UPLOAD)
    assert other not in str(error.value)


def test_no_key_and_a_refused_key_say_what_to_do(label_studio: Host) -> None:
    with pytest.raises(ImageError, match=r"a.png: status 401; set LABEL_STUDIO_API_KEY"):
        shape(loader(label_studio), UPLOAD)
    with pytest.raises(ImageError, match="status 401; Label Studio refuses LABEL_STUDIO_API_KEY") as error:
        shape(loader(label_studio, LEGACY), UPLOAD)
    assert LEGACY not in str(error.value)


def test_missing_files(label_studio: Host) -> None:
    with pytest.raises(ImageError, match="status 404; check that LABEL_STUDIO_URL"):
        shape(loader(label_studio), "/data/upload/1/gone.png")
    with pytest.raises(ImageError, match="status 404; start Label Studio with LOCAL_FILES_SERVING_ENABLED=true"):
        shape(loader(label_studio), "/data/local-files/?d=set1/one%20two.png")


def test_local_files_keep_their_query(label_studio: Host) -> None:
    label_studio.answers["/data/local-files/"] = free
    assert shape(loader(label_studio, LEGACY), "/data/local-files/?d=set1/one%20two.png") == (4, 6, 3)
    assert label_studio.seen == [("/data/local-files/?d=set1/one%20two.png", f"Token {LEGACY}")]


def test_an_address_of_label_studio_gets_the_key_and_another_does_not(label_studio: Host, elsewhere: Host) -> None:
    label_studio.valid = {f"Token {LEGACY}"}
    images = loader(label_studio, LEGACY)
    assert shape(images, label_studio.url + UPLOAD) == (4, 6, 3)
    assert shape(images, f"{elsewhere.url}/a.png") == (4, 6, 3)
    assert elsewhere.seen == [("/a.png", None)]


def test_a_prefix_in_the_url_of_label_studio(label_studio: Host) -> None:
    label_studio.answers["/ls" + UPLOAD] = free
    images = loader(f"{label_studio.url}/ls", LEGACY)
    assert shape(images, UPLOAD) == shape(images, "/ls" + UPLOAD) == (4, 6, 3)


def test_cloud_uris_go_through_the_resolver_and_the_key_stays_behind(label_studio: Host, elsewhere: Host) -> None:
    def resolve(handler: BaseHTTPRequestHandler) -> None:
        (uri,) = parse_qs(urlsplit(handler.path).query)["fileuri"]
        assert base64.urlsafe_b64decode(uri) == b"s3://bucket/a b.png"
        send(handler, 303, b"", Location=f"{elsewhere.url}/a.png?X-Amz-Signature=secret")

    label_studio.answers["/tasks/7/resolve/"] = resolve
    images = loader(label_studio, LEGACY)
    assert shape(images, "s3://bucket/a b.png") == (4, 6, 3)
    assert label_studio.seen[0][1] == f"Token {LEGACY}"
    assert elsewhere.seen == [("/a.png?X-Amz-Signature=secret", None)]
    elsewhere.answers.clear()
    with pytest.raises(ImageError, match=r"/a.png: status 404") as error:
        shape(images, "s3://bucket/a b.png")
    assert "secret" not in str(error.value)


def test_credentials_of_the_project_are_for_the_first_host_only(elsewhere: Host, label_studio: Host) -> None:
    elsewhere.answers["/moved.png"] = lambda handler: send(handler, 302, b"", Location=f"{label_studio.url}/free.png")
    label_studio.answers["/free.png"] = free
    images = loader("http://127.0.0.1:1")
    credentials = {"login": "me", "password": "pass"}
    assert shape(images, f"{elsewhere.url}/moved.png", **credentials) == (4, 6, 3)
    assert elsewhere.seen == [("/moved.png", "Basic " + base64.b64encode(b"me:pass").decode())]
    assert label_studio.seen == [("/free.png", None)]


def test_a_redirect_from_label_studio_back_to_itself_keeps_the_key(label_studio: Host) -> None:
    label_studio.valid = {f"Token {LEGACY}"}
    label_studio.answers["/old.png"] = lambda handler: send(handler, 301, b"", Location=UPLOAD)
    assert shape(loader(label_studio, LEGACY), "/old.png") == (4, 6, 3)


def test_endless_and_strange_redirects(elsewhere: Host) -> None:
    elsewhere.answers["/data/loop"] = lambda handler: send(handler, 302, b"", Location="/data/loop")
    elsewhere.answers["/data/file"] = lambda handler: send(handler, 302, b"", Location="file:///etc/passwd")
    with pytest.raises(ImageError, match="more than 5 redirects"):
        shape(loader(elsewhere), f"{elsewhere.url}/data/loop")
    with pytest.raises(ImageError, match=r"not followed"):
        shape(loader(elsewhere), f"{elsewhere.url}/data/file")


def test_data_uris() -> None:
    images = loader("http://127.0.0.1:1")
    uri = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    assert shape(images, uri) == shape(images, uri.rstrip("=")) == (4, 6, 3)
    for broken, message in [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,*", "not base64"),
        ("data:image/png;base64,AAAA", "cannot be decoded"),
        ("data:image/png;base64," + "A" * 2_000_000, "IMAGE_MAX_BYTES"),
    ]:
        with pytest.raises(ImageError, match=message) as error:
            shape(images, broken)
        assert len(str(error.value)) < 300


def test_an_image_that_was_sent_along_is_the_same_as_that_file_from_elsewhere(elsewhere: Host) -> None:
    """One cache for all tools; and what a task merely claims to be is not taken for a file."""
    elsewhere.answers["/a.png"] = free
    images, digest = loader("http://127.0.0.1:1"), file_digest(picture())
    sent = sent_image(digest, picture)
    look = images.look(sent, lambda name: None)
    assert look.photo is not None
    assert look.photo.pixels.shape == (4, 6, 3)
    assert images.place(sent) == images.recent(sent) == look.name
    fetched = images.look(ImageReference(f"{elsewhere.url}/a.png"), lambda name: None)
    assert fetched.name == look.name
    assert images.look(sent, {look.name: "known"}.get).kept == "known"
    with pytest.raises(ImageError, match="not an image reference that this server understands"):
        images.look(ImageReference(sent.url), {look.name: "known"}.get)
    with pytest.raises(ImageError, match="IMAGE_MAX_BYTES=9 allows"):
        loader("http://127.0.0.1:1", max_bytes=9).look(sent, lambda name: None)


WEBP_HEAD = b"RIFF....WEBPVP8 "
"""Of a file that begins so Pillow reads all before it decides."""


def test_limits_of_size(label_studio: Host) -> None:
    label_studio.answers["/data/big"] = lambda handler: send(handler, 200, WEBP_HEAD + bytes(200_000))
    with pytest.raises(ImageError, match="/big is larger than IMAGE_MAX_BYTES=100000"):
        shape(loader(label_studio, max_bytes=100_000), "/data/big")
    label_studio.answers["/data/big"] = free
    with pytest.raises(ImageError, match="/big: the image has 6 x 4 pixels, more than IMAGE_MAX_PIXELS=20"):
        shape(loader(label_studio, max_pixels=20), "/data/big")


def test_compressed_chunked_and_broken_off_answers(label_studio: Host) -> None:
    label_studio.answers["/data/gzip"] = lambda handler: send(
        handler, 200, gzip.compress(picture()), **{"Content-Encoding": "gzip"}
    )
    assert shape(loader(label_studio), "/data/gzip") == (4, 6, 3)

    def chunked(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in (picture()[:20], picture()[20:], b""):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.close_connection = True

    label_studio.answers["/data/chunked"] = chunked
    assert shape(loader(label_studio), "/data/chunked") == (4, 6, 3)

    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(picture()[:20])

    label_studio.answers["/data/half"] = half
    with pytest.raises(ImageError, match=r"/half: the connection broke off|/half: 20 bytes .* cannot be decoded"):
        shape(loader(label_studio), "/data/half")


def test_a_host_that_answers_too_slowly(label_studio: Host) -> None:
    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(40):
            try:
                handler.wfile.write(WEBP_HEAD * 6)
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.02)

    label_studio.answers["/data/slow"] = trickle
    label_studio.answers["/data/silent"] = lambda handler: time.sleep(0.5)
    for path in ("/data/slow", "/data/silent"):
        begin = time.monotonic()
        with pytest.raises(ImageError, match=r"IMAGE_TIMEOUT=0.2"):
            shape(loader(label_studio, timeout=0.2), path)
        assert time.monotonic() - begin < 0.6


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "beginning",
    [
        b"HTTP/1.1 200 ",
        OK + b"X-Long: ",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5; extension=",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ",
        OK + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x08\0\0\0\0\0\0",  # and then a file's name without end
    ],
    ids=["status line", "header", "chunk", "trailer", "compressed"],
)
def test_drips_before_and_between_the_pixels_do_not_outlast_the_limit(
    beginning: bytes, label_studio: Host, elsewhere: Host
) -> None:
    """Each byte comes in time; all together would take half a minute."""
    given_up = threading.Semaphore(0)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):
            handler.wfile.write(beginning)
            for _ in range(1000):
                handler.wfile.write(b"a")
                time.sleep(0.03)
            return
        given_up.release()

    for host in (label_studio, elsewhere):
        host.answers["/data/drip"] = drip
        with pytest.raises(ImageError, match=r"IMAGE_TIMEOUT=0\.2"):
            shape(loader(label_studio, timeout=0.2), f"{host.url}/data/drip")
        assert given_up.acquire(timeout=5)


def test_nobody_there() -> None:
    with pytest.raises(ImageError, match="ConnectionError; check LABEL_STUDIO_URL"):
        shape(loader("http://127.0.0.1:1"), UPLOAD)
    with pytest.raises(ImageError, match="check the address in the task's data"):
        shape(loader("http://127.0.0.1:1"), "http://127.0.0.1:2/a.png")


@pytest.mark.parametrize("url", ["a.png", "ftp://host/a.png", "file:///etc/passwd"])
def test_unknown_references(url: str) -> None:
    with pytest.raises(ImageError, match="not an image reference that this server understands"):
        shape(loader("http://127.0.0.1:1"), url)


@pytest.mark.parametrize("url", ["http://[::1", "http://host:port/a.png", "http://"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ImageError):
        shape(loader("http://127.0.0.1:1"), url)


def test_a_cloud_uri_needs_a_task() -> None:
    with pytest.raises(ImageError, match="needs the task's id"):
        loader("http://127.0.0.1:1").load(ImageReference("gs://bucket/a.png"))


def test_places_differ_by_reference_and_by_label_studio() -> None:
    one, other = loader("http://one"), loader("http://other")
    a, b = ImageReference("/a.png", 1), ImageReference("/b.png", 1)
    assert one.place(a) == one.place(ImageReference("/a.png", 2))
    assert len({one.place(a), one.place(b), other.place(a)}) == 3


def test_messages_hide_secrets() -> None:
    assert describe("https://me:secret@host:8/a.png?sig=secret#x") == "https://host:8/a.png"
    assert "secret" not in describe("data:image/png;base64,secret")
    assert "secret" not in repr(ImageReference("/a.png", 1, "me", "secret"))


# --- one Label Studio, several names


def named(host: Host, key: str | None, *names: str, hosts: tuple[str, ...] = (), url: str | None = None) -> ImageLoader:
    """A loader that was told what Label Studio calls itself."""
    return ImageLoader(
        LabelStudioAuth(url or host.url, key, 5.0),
        max_bytes=1 << 20,
        max_pixels=10_000,
        timeout=5.0,
        hosts=ImageHosts(hosts, allow_private=True),
        names=lambda: names,
    )


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:8080/data/upload/1/a.png",
        " HTTP://LocalHost:8080/data/upload/1/a.png\n",
        "https://localhost:8080/data/upload/1/a.png",
        "https://ls.example/sub/data/upload/1/a.png",
        "http://ls.example:80/sub/data/upload/1/a.png",
        "https://LS.example:443/sub/data\\upload\\1\\a.png",
        "{own}/data/upload/1/a.png",
        "{own_https}/data/upload/1/a.png",
        "//{host}/data/upload/1/a.png",
    ],
)
def test_label_studio_under_any_of_its_names_is_asked_at_its_address_with_the_key(
    label_studio: Host, address: str
) -> None:
    label_studio.valid = {f"Token {LEGACY}"}
    images = named(label_studio, LEGACY, "http://localhost:8080", "https://ls.example/sub")
    host = urlsplit(label_studio.url).netloc
    address = address.format(own=label_studio.url, own_https=f"https://{host}", host=host)
    assert shape(images, address) == (4, 6, 3)
    assert label_studio.seen == [(UPLOAD, f"Token {LEGACY}")]


def test_a_name_leads_to_label_studio_below_its_own_path(label_studio: Host) -> None:
    label_studio.answers["/ls" + UPLOAD] = free
    images = named(label_studio, LEGACY, "http://localhost:8080/ls", url=f"{label_studio.url}/ls/")
    assert shape(images, f"http://localhost:8080/ls{UPLOAD}") == (4, 6, 3)
    with pytest.raises(ImageError, match="localhost is not among the hosts"):
        shape(images, f"http://localhost:8080{UPLOAD}")


@pytest.mark.parametrize("listed", ["127.0.0.1", "*.0.1"])
def test_a_host_on_the_list_is_never_taken_for_label_studio(label_studio: Host, elsewhere: Host, listed: str) -> None:
    """Anybody can tell this server a name; it must not turn another host's photos into requests with the key."""
    images = named(label_studio, LEGACY, elsewhere.url, hosts=(listed,))
    assert shape(images, f"{elsewhere.url}/a.png") == (4, 6, 3)
    assert elsewhere.seen == [("/a.png", None)]
    assert label_studio.seen == []


def test_where_every_host_is_allowed_only_this_machine_may_be_another_name(label_studio: Host, elsewhere: Host) -> None:
    label_studio.valid = {f"Token {LEGACY}"}
    images = named(label_studio, LEGACY, "http://localhost:8080", "http://photos.example", hosts=("*",))
    assert shape(images, f"http://localhost:8080{UPLOAD}") == (4, 6, 3)
    with pytest.raises(ImageError, match=r"tried GET http://photos.example/"):
        shape(images, f"http://photos.example{UPLOAD}")
    assert len(label_studio.seen) == 1


def test_another_port_of_label_studios_host_is_another_host(label_studio: Host, elsewhere: Host) -> None:
    with pytest.raises(ImageError, match=r"127\.0\.0\.1 is not among the hosts"):
        shape(named(label_studio, LEGACY, "http://localhost:8080"), f"{elsewhere.url}{UPLOAD}")
    assert elsewhere.seen == label_studio.seen == []


def test_a_path_of_label_studio_at_an_unknown_host_names_the_setting(label_studio: Host) -> None:
    with pytest.raises(
        ImageError, match=r"localhost is not among .* set LABEL_STUDIO_URL to where this server reaches"
    ):
        shape(named(label_studio, LEGACY), "http://localhost:8080/data/local-files/?d=plain.jpg")
    with pytest.raises(ImageError) as error:
        shape(named(label_studio, LEGACY), "http://photos.example/a.jpg")
    assert "LABEL_STUDIO_URL" not in str(error.value)


def moved(label_studio: Host, target: str) -> None:
    label_studio.answers[UPLOAD] = lambda handler: send(handler, 301, b"", Location=target)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("https://127.0.0.1{path}", "redirects to https://127.0.0.1; set LABEL_STUDIO_URL=https://127.0.0.1"),
        ("https://ls.example/sub{path}", "set LABEL_STUDIO_URL=https://ls.example/sub"),
        ("{elsewhere}{path}", "set LABEL_STUDIO_URL={elsewhere}"),
        ("/user/login/?next={path}", "redirects to a login page"),
        ("https://sso.example/oauth2/start", "redirects to a login page"),
    ],
)
def test_redirects_of_label_studio_itself_are_explained(
    label_studio: Host, elsewhere: Host, target: str, says: str
) -> None:
    moved(label_studio, target.format(path=UPLOAD, elsewhere=elsewhere.url))
    with pytest.raises(ImageError) as error:
        shape(loader(label_studio, LEGACY), UPLOAD)
    assert says.format(elsewhere=elsewhere.url) in str(error.value)
    assert "IMAGE_HOSTS" not in str(error.value)
    assert LEGACY not in str(error.value)
    assert elsewhere.seen == []


def test_redirects_when_the_token_is_renewed_are_explained(label_studio: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    target = "https://127.0.0.1/api/token/refresh/"
    monkeypatch.setattr(label_studio, "token", lambda handler, body: send(handler, 308, b"", Location=target))
    with pytest.raises(ImageError, match=r"set LABEL_STUDIO_URL=https://127\.0\.0\.1$"):
        shape(loader(label_studio, REFRESH), UPLOAD)


def test_the_key_stays_behind_on_every_other_origin(label_studio: Host, elsewhere: Host) -> None:
    """Another port of the same host, once on the list, is called without the key."""
    moved(label_studio, f"{elsewhere.url}/a.png")
    assert shape(loader(label_studio, LEGACY), UPLOAD) == (4, 6, 3)
    assert label_studio.seen == [(UPLOAD, f"Token {LEGACY}")]
    assert elsewhere.seen == [("/a.png", None)]


@pytest.mark.parametrize(
    "uri",
    [
        "DATA:image/png;base64,{lines}",
        "data:image/png;BASE64,{plain}",
        "\n data:image/png;base64,{bare} ",
        "data:image/png;base64,{escaped}",
    ],
)
def test_data_uris_as_browsers_read_them(uri: str) -> None:
    plain = base64.b64encode(picture()).decode()
    lines = base64.encodebytes(picture()).decode()
    uri = uri.format(plain=plain, lines=lines, bare=plain.rstrip("="), escaped=plain.replace("+", "%2B"))
    assert shape(loader("http://127.0.0.1:1"), uri) == (4, 6, 3)


def test_equal_references_have_one_place() -> None:
    one = loader("http://127.0.0.1:1")
    assert one.place(ImageReference(" /a\n.png")) == one.place(ImageReference("/a.png"))
