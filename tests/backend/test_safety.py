"""Protects the promises of safety; each test makes the attack that a promise is about.

The last part of the alphabet of attacks, malformed bodies, is in test_backend_fuzz.py.
"""

from __future__ import annotations

import ast
import base64
import gzip
import hmac
import os
import pickle
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from flask.testing import FlaskClient
from gunicorn.http.errors import InvalidChunkSize
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backend.annotator import Annotator
from backend.http_client import CA_VARIABLES
from backend.images import allowlist as addresses
from backend.images.allowlist import ImageHosts, standing
from backend.images.decode import ImageError
from backend.images.loader import ImageLoader
from backend.label_studio.auth import LabelStudioAuth
from backend.prompts import ImageReference
from backend.settings import BUCKETS, Settings
from backend.web.app import create_app
from skipclick.checkpoint import load_checkpoint
from tests.support.fakes import HeldPredictor
from tests.support.recorded import clicked_bodies, recorded_requests

KEY = "0123456789abcdef0123456789abcdef01234567"
METADATA = "http://169.254.169.254/latest/meta-data/iam/"
ROOT = Path(__file__).parents[2]

MakeAnnotator = Callable[..., Annotator]


def picture(width: int = 6, height: int = 4) -> bytes:
    file = BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


class Host:
    """A web server on loopback: gives a picture to everybody, or what `answers` say, and notes who asked for what."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str | None]] = []
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        host = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                host.seen.append((self.headers["Host"], self.path, self.headers.get("Authorization")))
                status, headers, body = host.answers.get(self.path.partition("?")[0], (200, {}, picture()))
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def redirects(self, path: str, target: str) -> None:
        self.answers[path] = (302, {"Location": target}, b"")


@contextmanager
def serving(host: Host) -> Iterator[Host]:
    thread = threading.Thread(target=host.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield host
    finally:
        host.server.shutdown()
        host.server.server_close()
        thread.join()


@pytest.fixture
def label_studio() -> Iterator[Host]:
    with serving(Host()) as host:
        yield host


@pytest.fixture
def elsewhere() -> Iterator[Host]:
    with serving(Host()) as host:
        yield host


class Names:
    """The name service of a test: answers by name, the last of them again and again; and what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []
        real = socket.getaddrinfo

        def getaddrinfo(host: str, port: int, *args: Any, **options: Any) -> Any:
            if host not in self.answers:
                return real(host, port, *args, **options)
            self.asked.append(host)
            left = self.answers[host]
            found = left.pop(0) if len(left) > 1 else left[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The addresses to which images are fetched from elsewhere; nothing listens at those that are not loopback."""
    made: list[tuple[str, int]] = []
    real = addresses.create_connection

    def connect(address: tuple[str, int], *args: Any, **options: Any) -> socket.socket:
        made.append(address)
        if not address[0].startswith("127."):
            raise ConnectionRefusedError
        return real(address, *args, **options)

    monkeypatch.setattr(addresses, "create_connection", connect)
    return made


def loader(studio: Host | None = None, hosts: ImageHosts = ImageHosts(), root: Path | None = None) -> ImageLoader:  # noqa: B008
    url = studio.url if studio else "http://127.0.0.1:1"
    auth = LabelStudioAuth(url, KEY, 5)
    return ImageLoader(auth, max_bytes=1 << 20, max_pixels=10_000, timeout=5, hosts=hosts, local_root=root)


def fetch(images: ImageLoader, url: str) -> tuple[int, ...]:
    return images.load(ImageReference(url, 7)).pixels.shape


EVERYWHERE = ImageHosts(("*",))


# --- which hosts are called


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("93.184.215.14", "public"),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", "public"),
        ("64:ff9b::5db8:d70e", "public"),  # a public IPv4 address for networks that only have IPv6
        ("127.0.0.1", "private"),
        ("::1", "private"),
        ("10.1.2.3", "private"),
        ("172.31.0.1", "private"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("fd00:ec2::254", "unusable"),
        ("fd20:ce::254", "unusable"),
        ("100.100.100.200", "unusable"),
        ("168.63.129.16", "unusable"),
        ("::ffff:100.100.100.200", "unusable"),
        ("64:ff9b:1::a9fe:a9fe", "unusable"),
        ("64:ff9b:1:a9fe:00a9:fe00::", "unusable"),
        ("fd00:ec2::23", "unusable"),
        ("64:ff9b::a83f:8110", "unusable"),
        ("fd12::1", "private"),
        ("::ffff:127.0.0.1", "private"),
        ("64:ff9b::7f00:1", "private"),
        ("2002:7f00:1::", "private"),
        ("::7f00:1", "unusable"),
        ("169.254.169.254", "unusable"),
        ("::ffff:169.254.169.254", "unusable"),
        ("fe80::1%1", "unusable"),
        ("0.0.0.0", "unusable"),
        ("::", "unusable"),
        ("224.0.0.1", "unusable"),
        ("255.255.255.255", "unusable"),
        ("ff02::1", "unusable"),
    ],
)
def test_the_kind_of_an_address(text: str, expected: str) -> None:
    assert standing(text) == expected


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_dressed_as_ipv6_stays_what_it_is(address: IPv4Address) -> None:
    number = int(address)
    for dressed in (IPv6Address(0xFFFF << 32 | number), IPv6Address((0x64FF9B << 96) | number)):
        assert standing(str(dressed)) == standing(str(address))


def test_a_host_that_is_not_on_the_list_is_not_called_and_the_message_says_what_to_set(
    elsewhere: Host, names: Names
) -> None:
    names.answers["intranet.example"] = [["127.0.0.1"]]
    url = f"http://intranet.example:{elsewhere.port}/a.png"
    with pytest.raises(ImageError, match=r"did not try GET .*IMAGE_HOSTS=") as error:
        fetch(loader(), url)
    assert elsewhere.seen == []
    assert names.asked == []
    advice = str(error.value).rpartition("IMAGE_HOSTS=")[2]
    settings = Settings.from_environment({"IMAGE_HOSTS": advice, "ALLOW_PRIVATE_ADDRESSES": "true"})
    assert settings.image_hosts == (*BUCKETS, "intranet.example")
    hosts = ImageHosts(settings.image_hosts, settings.allow_private_addresses)
    assert fetch(loader(hosts=hosts), url) == (4, 6, 3)


@pytest.mark.parametrize(
    ("pattern", "host", "is_on"),
    [
        ("*", "anything.example", True),
        ("a.example", "a.example", True),
        ("a.example", "A.Example.", True),
        ("a.example", "a.example.evil.example", False),
        ("a.example", "xa.example", False),
        ("*.a.example", "x.y.a.example", True),
        ("*.a.example", "a.example", False),
        ("*.a.example", "xa.example", False),
    ],
)
def test_patterns_of_hosts(pattern: str, host: str, is_on: bool) -> None:
    try:
        ImageHosts((pattern,)).check_name(host)
    except addresses.RefusedHostError:
        assert not is_on
    else:
        assert is_on


def test_buckets_of_the_clouds_are_on_the_list_and_label_studio_needs_none(label_studio: Host) -> None:
    for host in (
        "bucket.s3.eu-west-1.amazonaws.com",
        "my.dotted.bucket.s3.amazonaws.com",
        "s3.eu-central-1.amazonaws.com",
        "s3-eu-west-1.amazonaws.com",
        "bucket.s3.dualstack.us-east-2.amazonaws.com",
        "bucket.s3-accelerate.amazonaws.com",
        "storage.googleapis.com",
        "me.blob.core.windows.net",
    ):
        ImageHosts().check_name(host)
    assert fetch(loader(label_studio, ImageHosts(())), "/data/upload/1/a.png") == (4, 6, 3)


@pytest.mark.parametrize(
    "host",
    [
        "ec2-1-2-3-4.eu-west-1.compute.amazonaws.com",
        "mine-123.eu-west-1.elb.amazonaws.com",
        "abc.execute-api.eu-west-1.amazonaws.com",
        "s3.amazonaws.com.evil.example",
        "x.s3.a.b.amazonaws.com",
        "evil.googleapis.com",
    ],
)
def test_machines_of_a_clouds_customers_are_no_buckets(host: str) -> None:
    with pytest.raises(addresses.RefusedHostError):
        ImageHosts().check_name(host)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "017700000001", "[::ffff:127.0.0.1]", "[::1]"]
)
def test_private_addresses_are_refused_however_they_are_spelled(
    elsewhere: Host, connections: list[tuple[str, int]], host: str
) -> None:
    with pytest.raises(ImageError, match=r"ALLOW_PRIVATE_ADDRESSES=true|not a valid address|NameResolution|Connection"):
        fetch(loader(hosts=EVERYWHERE), f"http://{host}:{elsewhere.port}/a.png")
    assert connections == []
    assert elsewhere.seen == []


def test_a_name_on_the_list_with_a_private_address_is_refused_unless_the_network_is_trusted(
    elsewhere: Host, names: Names
) -> None:
    names.answers["x.s3.amazonaws.com"] = [["127.0.0.1"]]
    url = f"http://x.s3.amazonaws.com:{elsewhere.port}/a.png"
    with pytest.raises(ImageError, match="ALLOW_PRIVATE_ADDRESSES=true"):
        fetch(loader(), url)
    assert elsewhere.seen == []
    assert fetch(loader(hosts=ImageHosts(allow_private=True)), url) == (4, 6, 3)
    assert elsewhere.seen == [(f"x.s3.amazonaws.com:{elsewhere.port}", "/a.png", None)]


def test_one_bad_address_among_good_ones_is_enough(names: Names, connections: list[tuple[str, int]]) -> None:
    names.answers["x.s3.amazonaws.com"] = [["93.184.215.14", "10.0.0.1"]]
    with pytest.raises(ImageError, match="private address"):
        fetch(loader(), "http://x.s3.amazonaws.com/a.png")
    assert connections == []


def test_link_local_addresses_are_refused_even_in_a_trusted_network(connections: list[tuple[str, int]]) -> None:
    for url in (METADATA, "http://[fe80::1%251]/", "http://0.0.0.0:9090/"):
        with pytest.raises(ImageError, match=r"link-local, reserved|InvalidURL"):
            fetch(loader(hosts=ImageHosts(("*",), allow_private=True)), url)
    assert connections == []


def test_redirects_are_checked_like_first_addresses(label_studio: Host, elsewhere: Host, names: Names) -> None:
    """Both from a host on the list and from Label Studio, which redirects to buckets."""
    names.answers["x.s3.amazonaws.com"] = [["127.0.0.1"]]
    for target in (
        METADATA,
        f"http://localhost:{elsewhere.port}/secret",
        f"http://x.s3.amazonaws.com:{elsewhere.port}/",
    ):
        label_studio.redirects("/tasks/7/resolve/", target)
        with pytest.raises(ImageError, match=r"did not try GET"):
            fetch(loader(label_studio), "s3://bucket/a.png")
    elsewhere.redirects("/out.png", METADATA)
    with pytest.raises(ImageError, match=r"169\.254.*link-local"):
        fetch(loader(hosts=ImageHosts(("*",), allow_private=True)), f"{elsewhere.url}/out.png")
    assert [path for _, path, _ in elsewhere.seen] == ["/out.png"]


def test_a_name_that_means_another_host_a_moment_later_gains_nothing(
    names: Names, connections: list[tuple[str, int]]
) -> None:
    """DNS rebinding: public when it is checked, loopback when it is called."""
    names.answers["x.s3.amazonaws.com"] = [["93.184.215.14"], ["127.0.0.1"]]
    with pytest.raises(ImageError, match="ConnectionError"):
        fetch(loader(), "http://x.s3.amazonaws.com/a.png")
    assert names.asked == ["x.s3.amazonaws.com"]
    assert connections == [("93.184.215.14", 80)]


def test_a_second_address_is_tried_where_the_first_does_not_answer(
    elsewhere: Host, names: Names, connections: list[tuple[str, int]]
) -> None:
    names.answers["x.s3.amazonaws.com"] = [["10.0.0.1", "127.0.0.1"]]
    hosts = ImageHosts(allow_private=True)
    assert fetch(loader(hosts=hosts), f"http://x.s3.amazonaws.com:{elsewhere.port}/a.png") == (4, 6, 3)
    assert [address for address, _ in connections] == ["10.0.0.1", "127.0.0.1"]


def test_the_key_is_for_label_studio_alone_whatever_an_address_looks_like(
    label_studio: Host, elsewhere: Host, names: Names
) -> None:
    """Parsers disagree about the host of such addresses; all of them are meant to look like Label Studio's."""
    names.answers["evil.example"] = [["127.0.0.1"]]
    evil, own = f"evil.example:{elsewhere.port}", f"127.0.0.1:{label_studio.port}"
    images = loader(label_studio, ImageHosts(("evil.example",), allow_private=True))
    for url in (
        f"http://{evil}\\@{own}/a.png",
        f"http://{evil}/@{own}/a.png",
        f"http://{evil}?@{own}/a.png",
        f"http://{evil}#@{own}/a.png",
        f"http://{own}@{evil}/a.png",
        f"http://{own}%2F@{evil}/a.png",
        f"http:\\\\{evil}\\@{own}/a.png",
        f"//{evil}/a.png",
    ):
        with suppress(ImageError):
            fetch(images, url)
    assert len(elsewhere.seen) >= 4
    assert {authorization for *_, authorization in elsewhere.seen} == {None}
    assert fetch(images, f"http://{own}/a.png") == (4, 6, 3)
    assert label_studio.seen[-1][2] == f"Token {KEY}"


def test_a_proxy_does_not_open_what_is_closed(elsewhere: Host, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", elsewhere.url)
    names.answers |= {"x.s3.amazonaws.com": [["10.0.0.1"]], "y.s3.amazonaws.com": [["93.184.215.14"]]}
    with pytest.raises(ImageError, match="private address"):
        fetch(loader(), "http://x.s3.amazonaws.com/a.png")
    with pytest.raises(ImageError, match="IMAGE_HOSTS"):
        fetch(loader(), "http://other.example/a.png")
    assert elsewhere.seen == []
    assert fetch(loader(), "http://y.s3.amazonaws.com/a.png") == (4, 6, 3)
    assert elsewhere.seen[0][:2] == ("y.s3.amazonaws.com", "http://y.s3.amazonaws.com/a.png")


@pytest.fixture(scope="module")
def minio_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `key` and `cert` of an authority of one's own, for minio.internal."""
    folder = tmp_path_factory.mktemp("certificates")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x"]
    command += ["-addext", "subjectAltName=DNS:minio.internal", "-keyout", str(folder / "key"), "-out"]
    subprocess.run([*command, str(folder / "cert")], check=True, capture_output=True)
    return folder


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
@pytest.mark.parametrize("variable", [*CA_VARIABLES[:3], None])
def test_photos_of_a_minio_with_a_certificate_of_its_own(
    label_studio: Host,
    names: Names,
    minio_certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
) -> None:
    """Label Studio sends the browser, and so this server, to an address that it has signed."""
    for name in CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, str(minio_certificate / "cert"))
    host = Host()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(minio_certificate / "cert", minio_certificate / "key")
    host.server.socket = context.wrap_socket(host.server.socket, server_side=True)
    names.answers["minio.internal"] = [["127.0.0.1"]]
    minio = f"minio.internal:{host.port}"
    label_studio.redirects("/tasks/7/resolve/", f"https://{minio}/bucket/a.png?X-Amz-Signature=abc")
    hosts = ImageHosts(("minio.internal",), allow_private=True)
    with serving(host):
        if variable is None:
            with pytest.raises(ImageError, match=r"not trusted here; .* set REQUESTS_CA_BUNDLE"):
                fetch(loader(label_studio, hosts), "s3://bucket/a.png")
            return
        assert fetch(loader(label_studio, hosts), "s3://bucket/a.png") == (4, 6, 3)
    assert host.seen == [(minio, "/bucket/a.png?X-Amz-Signature=abc", None)]
    with pytest.raises(ImageError, match=r"IMAGE_HOSTS=.*minio\.internal"):
        fetch(loader(label_studio), "s3://bucket/a.png")
    with pytest.raises(ImageError, match="ALLOW_PRIVATE_ADDRESSES=true"):
        fetch(loader(label_studio, ImageHosts(("minio.internal",))), "s3://bucket/a.png")


def test_a_file_of_certificates_that_is_not_there_is_named(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/none.pem")
    names.answers["x.s3.amazonaws.com"] = [["127.0.0.1"]]
    with pytest.raises(ImageError, match="REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names does not exist"):
        fetch(loader(hosts=ImageHosts(("*",), allow_private=True)), "https://x.s3.amazonaws.com/a.png")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_certificates_are_checked_against_the_name_and_not_the_address(
    names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x"]
    command += ["-addext", "subjectAltName=DNS:right.example", "-keyout", str(tmp_path / "key"), "-out"]
    subprocess.run([*command, str(tmp_path / "cert")], check=True, capture_output=True)
    host = Host()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    host.server.socket = context.wrap_socket(host.server.socket, server_side=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert"))
    names.answers |= {"right.example": [["127.0.0.1"]], "wrong.example": [["127.0.0.1"]]}
    images = loader(hosts=ImageHosts(("*",), allow_private=True))
    with serving(host):
        assert fetch(images, f"https://right.example:{host.port}/a.png") == (4, 6, 3)
        with pytest.raises(ImageError, match="SSLError"):
            fetch(images, f"https://wrong.example:{host.port}/a.png")


@pytest.mark.parametrize(
    "path",
    [
        "/api/current-user/token",
        "/api/projects/1/export?exportType=JSON",
        "/api/projects/1/export?name=a.png",
        "/user/account/",
        "/metrics",
        "/data/../api/current-user/token",
        "/data/%2e%2e/api/current-user/token",
        "/data/..%5Capi/current-user/token",
        "/tasks/1/resolve/../../../api/current-user/token",
        "/projects/1/settings/",
        "//api/current-user/token",
        "/",
    ],
)
def test_nothing_but_images_is_asked_of_label_studio_with_the_key(label_studio: Host, path: str) -> None:
    """Nor by way of a redirect of Label Studio's own."""
    label_studio.answers = {path.partition("?")[0]: (200, {}, b"{secret}")}
    images = loader(label_studio)
    for url in (path, f"{label_studio.url}{path}"):
        with pytest.raises(ImageError) as error:
            fetch(images, url)
        assert "secret" not in str(error.value)
        assert b"{secret}".hex(" ") not in str(error.value)
    assert label_studio.seen == []
    label_studio.redirects("/data/upload/1/a.png", path)
    with pytest.raises(ImageError):
        fetch(images, "/data/upload/1/a.png")
    assert [asked for _, asked, _ in label_studio.seen] == ["/data/upload/1/a.png"]


@pytest.mark.parametrize(
    "path",
    [
        "/data/upload/1/a%20..b.png",
        "/data/local-files/?d=x/../a.jpg",
        "/storage-data/uploaded/?filepath=upload/1/a.png",
        "/tasks/7/resolve/?fileuri=czM6Ly9h",
        "/projects/3/presign/?fileuri=czM6Ly9h",
        "/photos/IMG_1.JPG",
    ],
)
def test_wherever_label_studio_keeps_images_they_are_fetched(label_studio: Host, path: str) -> None:
    assert fetch(loader(label_studio), path) == (4, 6, 3)


@pytest.mark.parametrize("url", ["/data/upload/1/{}.png", "http://a.example/{}", "s3://bucket/{}", "//a.example/{}"])
def test_addresses_without_end_are_refused_before_they_are_parsed(label_studio: Host, url: str) -> None:
    images = loader(label_studio, EVERYWHERE)
    for part in ("a", "%", "é", "/..", "@"):
        reference = ImageReference(url.format(part * 70_000), 7)
        for ask in (images.place, images.recent, images.load):
            with pytest.raises(ImageError, match=r"an address of \d+ characters"):
                ask(reference)
    assert label_studio.seen == []


def test_the_error_about_a_file_tells_nothing_of_its_content(label_studio: Host) -> None:
    label_studio.answers["/data/x"] = (200, {}, b"secret-7")
    with pytest.raises(ImageError, match="a file of unknown type") as error:
        fetch(loader(label_studio), "/data/x")
    assert b"secret-7".hex(" ") not in str(error.value)


# --- files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A root with pictures, and things beside it and in it that must stay where they are."""
    root = tmp_path / "root"
    (root / "set").mkdir(parents=True)
    (root / "set" / "one two.png").write_bytes(picture())
    (tmp_path / "rootless").mkdir()
    (tmp_path / "rootless" / "a.png").write_bytes(picture(3, 3))
    (tmp_path / "secret.png").write_bytes(picture(3, 3))
    (root / "inside.png").symlink_to(root / "set" / "one two.png")
    (root / "outside.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    (root / "large.png").write_bytes(bytes(2 << 20))
    return root


def local(images: ImageLoader, name: str) -> tuple[int, ...]:
    return fetch(images, f"/data/local-files/?d={name}")


def test_local_files_come_from_the_folder_and_not_from_label_studio(label_studio: Host, folder: Path) -> None:
    images = loader(label_studio, root=folder)
    for name in ("set/one%20two.png", "/set/one%20two.png", "inside.png", "set/../inside.png"):
        assert local(images, name) == (4, 6, 3)
    assert fetch(images, f"{label_studio.url}/data/local-files/?d=inside.png") == (4, 6, 3)
    assert label_studio.seen == []
    assert fetch(images, "/data/upload/1/a.png") == (4, 6, 3)
    assert local(loader(label_studio), "../secret.png") == (4, 6, 3)  # without the setting Label Studio decides
    assert len(label_studio.seen) == 2


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "set/../../secret.png",
        "%2e%2e/secret.png",
        "../rootless/a.png",
        "{folder}/../secret.png",
        "outside.png",
        "up/secret.png",
        "/etc/passwd",
        "loop",
        "pipe",
        "set",
        "",
        "a%00.png",
        "x" * 5000,
        "large.png",
    ],
)
def test_nothing_but_files_below_the_root_is_read(folder: Path, name: str) -> None:
    with pytest.raises(ImageError) as error:
        local(loader(root=folder), name.format(folder=folder))
    assert "passwd:" not in str(error.value)
    assert str(folder) not in str(error.value).replace(name.format(folder=folder), "")


@given(st.lists(st.sampled_from(["..", ".", "", "set", "up", "inside.png", "outside.png", "secret.png", "a.png"])))
def test_no_path_leads_out(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    base = tmp_path_factory.getbasetemp() / "paths"
    if not base.exists():
        (base / "root" / "set").mkdir(parents=True)
        (base / "secret.png").write_bytes(picture(3, 3))
        (base / "root" / "inside.png").write_bytes(picture())
        (base / "root" / "outside.png").symlink_to(base / "secret.png")
        (base / "root" / "up").symlink_to(base)
    with suppress(ImageError):
        assert local(loader(root=base / "root"), "/".join(parts)) == (4, 6, 3)


# --- images that are weapons


def png_header(width: int, height: int) -> bytes:
    """A PNG of any size in a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    body = chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize("size", [(101, 100), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"IMAGE_MAX_PIXELS=10000|cannot be decoded"):
            fetch(loader(), data_uri(png_header(*size)))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_bombs_in_the_transfer_are_refused_while_they_unpack(label_studio: Host) -> None:
    bomb = gzip.compress(b"RIFF....WEBPVP8 " + bytes(256 << 20), 9)  # Pillow reads WebP files to their end
    label_studio.answers["/data/bomb"] = (200, {"Content-Encoding": "gzip"}, bomb)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="IMAGE_MAX_BYTES"):
            fetch(loader(label_studio), "/data/bomb")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_formats_that_run_other_programs_are_no_images() -> None:
    file = BytesIO()
    Image.new("RGB", (6, 4)).save(file, "EPS")
    with pytest.raises(ImageError, match="cannot be decoded"):
        fetch(loader(), data_uri(file.getvalue()))


# --- nothing foreign is executed


class Bomb:
    """Executes code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_checkpoints_that_execute_code_do_not(tmp_path: Path) -> None:
    hit = tmp_path / "hit"
    plain, torch_file = tmp_path / "plain.pth", tmp_path / "zip.pth"
    plain.write_bytes(pickle.dumps({"state_dict": Bomb(hit)}))
    with zipfile.ZipFile(torch_file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": Bomb(hit)}, protocol=2))
        archive.writestr("archive/version", "3\n")
    for path in (plain, torch_file):
        with pytest.raises(ValueError, match=r"checkpoint|safetensors|pth"):
            load_checkpoint(str(path))
    assert not hit.exists()


EXECUTORS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


def test_no_module_unpickles_or_evaluates_what_it_reads() -> None:
    """But the two readers of foreign pickles, which name the classes they admit, and a writer of RITM's form."""
    found = []
    for path in (
        path for package in ("backend", "skipclick", "train", "bench") for path in (ROOT / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found += [f"{path.relative_to(ROOT)}:{node.lineno} {complaint}" for complaint in complaints(node)]
    writer = "train/cocolvis/build.py"
    assert set(re.findall(r"pickle\.\w+", (ROOT / writer).read_text(encoding="utf-8"))) <= {
        "pickle.Pickler",
        "pickle.dumps",
    }
    allowed = {"skipclick/safe_unpickle.py", "skipclick/released.py", writer}
    assert [one for one in found if one.partition(":")[0] not in allowed] == []


def complaints(node: ast.AST) -> Iterator[str]:
    """What is suspicious about one piece of code."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        yield from (f"imports {module}" for module in modules if module.partition(".")[0] in EXECUTORS)
    if not isinstance(node, ast.Call):
        return
    called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"):
        yield called
    if called == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if called in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
        yield "np.load with pickles"
    if given.get("shell", "False") != "False":
        yield f"{called} through a shell"


def test_the_scan_sees_what_it_looks_for() -> None:
    bad = ["import pickle", "from dill import load", "torch.load(f)", "eval(x)", "run(a, shell=True)"]
    good = ["import json", "torch.load(f, weights_only=True)", "model.eval()", "np.load(f)", "run(a)"]
    for line in bad + good:
        assert any(list(complaints(node)) for node in ast.walk(ast.parse(line))) == (line in bad), line


def test_xml_bombs_in_a_labeling_config_are_refused(client: FlaskClient) -> None:
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "ha"}">' for n in range(10))
    for schema in (
        f"<!DOCTYPE View [{laughs}]><View>&a9;</View>",
        '<!DOCTYPE View [<!ENTITY a SYSTEM "file:///etc/passwd">]><View>&a;</View>',
        '<?xml version="1.0" encoding="nothing"?><View/>',
        "<View>" * 40_000 + "</View>" * 40_000,
    ):
        answer = client.post("/setup", json={"schema": schema})
        assert answer.status_code == 400
        assert "labeling config" in answer.json["error"]
        assert "root:" not in answer.text


def test_deep_and_wide_labeling_configs_take_no_long_time(client: FlaskClient) -> None:
    nested = '<BrushLabels name="b" toName="i">' * 4000 + "</BrushLabels>" * 4000
    assert client.post("/setup", json={"schema": nested}).status_code == 400
    labels = "".join(f'<Label value="{n}"/>' for n in range(5000))
    schema = (
        f'<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i" smart="false">{labels}</BrushLabels>'
        f'<KeyPointLabels name="k" toName="i" smart="true">{labels}</KeyPointLabels></View>'
    )
    assert client.post("/setup", json={"schema": schema}).status_code == 200


# --- limits


def test_requests_that_are_too_large_are_refused_with_the_setting(make_annotator: MakeAnnotator) -> None:
    client = create_app(Settings(request_max_bytes=2048), make_annotator()).test_client()
    answer = client.post("/predict", data=b" " * 2049)
    assert answer.status_code == 413
    assert "REQUEST_MAX_BYTES=2KB" in answer.json["error"]
    chunked = {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}  # no length is announced
    for size, status in ((2048, 400), (2049, 413), (1_000_000, 413)):
        body = BytesIO(b" " * size)
        assert client.post("/predict", input_stream=body, environ_overrides=chunked).status_code == status


def test_clicks_and_pixels_have_limits(client: FlaskClient) -> None:
    body = clicked_bodies("03")[0]
    (click,) = body["params"]["context"]["result"]
    body["params"]["context"]["result"] = [click | {"id": str(n)} for n in range(101)]
    answer = client.post("/predict", json=body)
    assert (answer.status_code, "REQUEST_MAX_CLICKS=100" in answer.json["error"]) == (400, True)
    body["params"]["context"]["result"] = [click | {"id": str(n)} for n in range(10_001)]
    answer = client.post("/predict", json=body)
    assert (answer.status_code, "has 10001 items" in answer.json["error"]) == (400, True)
    labels = {click["type"]: ["a"] * 1001}
    body["params"]["context"]["result"] = [click | {"value": click["value"] | labels}]
    answer = client.post("/predict", json=body)
    assert (answer.status_code, "has 1001 labels" in answer.json["error"]) == (400, True)
    body["params"]["context"]["result"] = [click | {"original_width": 2**31, "original_height": 2**31}]
    answer = client.post("/predict", json=body)
    assert (answer.status_code, "IMAGE_MAX_PIXELS" in answer.json["error"]) == (400, True)


@pytest.mark.parametrize(
    ("threads", "most", "trouble"),
    [(2, 1 << 20, "too many long bodies are worked on"), (8, 20_000, "take all the memory for them")],
)
def test_long_bodies_leave_threads_and_memory_for_others(
    make_annotator: MakeAnnotator, monkeypatch: pytest.MonkeyPatch, threads: int, most: int, trouble: str
) -> None:
    """While one is worked on, as many as there are places or memory for."""
    monkeypatch.setattr("backend.web.http._LONG_BODY", 4000)
    monkeypatch.setattr("backend.web.http._BODIES_BYTES", 0)
    monkeypatch.setattr("backend.web.http._BODIES_PATIENCE", 0.05)
    stuck = HeldPredictor()
    app = create_app(Settings(threads=threads, request_max_bytes=most), make_annotator(predictor=stuck))
    long = clicked_bodies("03")[0] | {"padding": "x" * 12_000}
    with ThreadPoolExecutor(1) as pool:
        click = pool.submit(app.test_client().post, "/predict", json=long)
        assert stuck.inside.wait(5)
        for route in ("/predict", "/setup", "/webhook"):
            answer = app.test_client().post(route, json=long)
            assert answer.status_code == 503
            assert trouble in answer.json["error"]
            assert answer.headers["Retry-After"]
        assert app.test_client().post("/webhook", json={"action": "x"}).status_code == 201
        assert app.test_client().get("/health").status_code == 200
        stuck.go_on.set()
        assert click.result(10).status_code == 200
    assert app.test_client().post("/predict", json=long).status_code == 200  # all of it was given back
    for _ in range(3):
        assert app.test_client().post("/predict", data=b"[" * 12_000).status_code == 400


def test_a_click_that_waits_too_long_is_given_up(make_annotator: MakeAnnotator) -> None:
    stuck = HeldPredictor()
    app = create_app(Settings(request_timeout=0.2), make_annotator(predictor=stuck))
    with ThreadPoolExecutor(1) as pool:
        click = pool.submit(app.test_client().post, "/predict", json=clicked_bodies("03")[0])
        assert stuck.inside.wait(5)
        time.sleep(0.25)
        stuck.go_on.set()
        answer = click.result(10)
    assert answer.status_code == 503
    assert "cancelled" in answer.json["error"]


def test_lists_that_never_end_take_no_long_time(client: FlaskClient) -> None:
    """Looking for the end of each would take time with the square of the body's length: minutes for this one."""
    answer = client.post("/predict", data=b'{"a":' + b'"rle":[' * 600_000, content_type="application/json")
    assert answer.status_code == 400


def test_keys_of_masks_without_end_take_no_memory(client: FlaskClient) -> None:
    body = b'{"a": 1' + b',"rle":1' * 600_000 + b"}"
    tracemalloc.start()
    try:
        answer = client.post("/predict", data=body, content_type="application/json")
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
    finally:
        tracemalloc.stop()
    assert answer.status_code == 400
    assert "500,000 masks" in answer.json["error"]


@pytest.mark.slow
def test_clients_that_send_half_a_request_or_drips_do_not_keep_the_threads(tmp_path: Path) -> None:
    """As many of them as there are threads: the server goes on answering."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    settings = {"HOST": "127.0.0.1", "PORT": str(port), "THREADS": "2", "MODEL_DIR": str(tmp_path)}
    environment = os.environ | settings | {"REQUEST_TIMEOUT": "12"}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "backend"], env=environment, stdout=log, stderr=log, cwd=ROOT)
    try:
        health = f"http://127.0.0.1:{port}/health"
        while not answers(health, 5):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        beginnings = (
            b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Long: ",
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
        )
        for pause in (None, 0.5):
            halves = [socket.create_connection(("127.0.0.1", port)) for _ in beginnings]
            for half, beginning in zip(halves, beginnings, strict=True):
                half.sendall(beginning)
            over = threading.Event()
            dripping = [threading.Thread(target=drip, args=(half, pause, over)) for half in halves if pause]
            for thread in dripping:
                thread.start()
            time.sleep(0.5)
            assert answers(health, 5)
            over.set()
            for thread in dripping:
                thread.join(10)
            for half in halves:
                half.close()
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        process.terminate()
        process.wait(30)


def drip(connection: socket.socket, pause: float, over: threading.Event) -> None:
    """A byte now and then, until the server closes the connection."""
    with suppress(OSError):
        while not over.wait(pause):
            connection.sendall(b"a")


def answers(url: str, patience: float) -> bool:
    try:
        return requests.get(url, timeout=patience).ok
    except requests.RequestException:
        return False


# --- passwords


def test_every_route_but_liveness_asks_for_the_password(make_annotator: MakeAnnotator) -> None:
    app = create_app(Settings(basic_auth_user="me", basic_auth_pass="pass"), make_annotator())
    client = app.test_client()
    paths = {rule.rule.replace("<name>", "index.html") for rule in app.url_map.iter_rules()}
    assert {"/health", "/predict", "/metrics", "/ui", "/ui/index.html", "/status", "/openapi.json"} <= paths
    for path in sorted(paths | {"/nothing", "//health", "/health/", "/Health", "/health%2f..%2fstatus"}):
        for method in ("GET", "POST", "OPTIONS"):
            status = client.open(path, method=method).status_code
            assert (status == 401) == (path != "/health"), (method, path, status)


def test_passwords_are_compared_in_constant_time(
    make_annotator: MakeAnnotator, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    app = create_app(Settings(basic_auth_user="me", basic_auth_pass="pass"), make_annotator())
    for pair in (("me", "pass"), ("me", "wrong"), ("you", "pass"), ("", "")):
        app.test_client().get("/status", auth=pair)
    assert [given for given, _ in compared] == [b"me:pass", b"me:wrong", b"you:pass", b":"]


@pytest.mark.parametrize(
    "header", ["", "Basic", "Basic !", "Basic //79", "Basic bWU=", "Digest a=b", "Basic " + "A" * 9999]
)
def test_strange_credentials_are_just_wrong(make_annotator: MakeAnnotator, header: str) -> None:
    app = create_app(Settings(basic_auth_user="me", basic_auth_pass="pass"), make_annotator())
    assert app.test_client().get("/status", headers={"Authorization": header}).status_code == 401


def test_requests_of_the_recordings_are_within_all_limits(client: FlaskClient) -> None:
    for request in recorded_requests("05", "/predict") + recorded_requests("15", "/predict"):
        assert client.post("/predict", json=request["body"]).status_code == 200


def test_label_studio_is_called_though_its_address_is_private(label_studio: Host) -> None:
    assert standing("127.0.0.1") == "private"
    assert fetch(loader(label_studio, ImageHosts(())), f"{label_studio.url}/a.png") == (4, 6, 3)


@pytest.mark.parametrize(("path", "most"), [("/setup", 4 << 20), ("/webhook", 24 << 20)])
def test_configs_and_events_are_no_larger_than_they_need_to_be(client: FlaskClient, path: str, most: int) -> None:
    answer = client.post(path, data=b" " * (most + 1))
    assert answer.status_code == 400
    assert f"larger than the {most >> 20} MB" in answer.json["error"]
    chunked = {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
    answer = client.post(path, input_stream=BytesIO(b" " * (most + 1)), environ_overrides=chunked)
    assert answer.status_code == 400


def test_a_malformed_chunk_is_bad_input_without_a_traceback(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    class Malformed:
        """As gunicorn hands out a body."""

        def read(self, *_: Any) -> bytes:
            raise InvalidChunkSize(b"zz")

        def tell(self) -> int:
            return 0

        def seek(self, *_: int) -> int:
            return 0

        def close(self) -> None: ...

    chunked = {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
    answer = client.post("/predict", input_stream=Malformed(), environ_overrides=chunked)  # type: ignore[arg-type]
    assert answer.status_code == 400
    assert not any(record.exc_info for record in caplog.records)
