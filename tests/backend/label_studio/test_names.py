"""Protects Label Studio's other names: where they lead, how long they hold, and what they cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.label_studio.auth import redirect_trouble, under
from backend.label_studio.names import FILE, ToldNames


@pytest.mark.parametrize(
    ("name", "address", "path"),
    [
        ("http://ls", "http://ls/data/a.png?d=1", "/data/a.png?d=1"),
        ("http://ls", "https://ls/data/a.png", "/data/a.png"),
        ("http://ls:80", "http://LS/a.png", "/a.png"),
        ("https://ls:443/", "http://ls:80/a.png", "/a.png"),
        ("http://ls:8080", "https://ls:8080/a.png", "/a.png"),
        ("http://ls./", "http://ls/a.png", "/a.png"),
        ("http://ls/sub", "https://ls/sub/a.png", "/a.png"),
        ("http://ls/sub/", "http://ls/sub", "/"),
        ("http://ls", "http://ls", "/"),
        ("http://ls", "http://ls//evil/a.png", "//evil/a.png"),
        ("http://ls/sub", "http://ls/subway/a.png", None),
        ("http://ls/sub", "http://ls/a.png", None),
        ("http://ls:8080", "http://ls/a.png", None),
        ("http://ls", "http://ls:8080/a.png", None),
        ("http://ls:8080", "https://ls/a.png", None),
        ("http://ls", "http://other/a.png", None),
        ("http://ls", "http://ls.evil/a.png", None),
        ("http://ls", "ftp://ls/a.png", None),
    ],
)
def test_what_lies_under_a_name(name: str, address: str, path: str | None) -> None:
    assert under(name, address) == path


def test_names_are_kept_for_other_processes_and_later_starts(tmp_path: Path) -> None:
    server, job = ToldNames(tmp_path), ToldNames(tmp_path)
    assert job.names() == []
    server.tell("http://LocalHost:8080/")
    assert job.names() == server.names() == ToldNames(tmp_path).names() == ["http://localhost:8080"]
    job.tell("https://ls.example/sub")
    assert server.names() == ["https://ls.example/sub", "http://localhost:8080"]


def test_a_name_holds_for_a_week_after_it_was_told(tmp_path: Path) -> None:
    now = [1e9]
    names = ToldNames(tmp_path, clock=lambda: now[0])
    names.tell("http://a")
    now[0] += 6 * 86400
    assert names.names() == ["http://a"]
    names.tell("http://a")
    now[0] += 6 * 86400
    assert names.names() == ["http://a"]
    now[0] += 2 * 86400
    assert names.names() == []


def test_only_the_last_few_names_are_kept_and_a_told_name_is_seldom_written(tmp_path: Path) -> None:
    now = [1e9]
    names = ToldNames(tmp_path, clock=lambda: now[0])
    for number in range(100):
        now[0] += 1
        names.tell(f"http://host{number}")
    assert names.names() == [f"http://host{number}" for number in range(99, 91, -1)]
    written = (tmp_path / FILE).stat().st_mtime_ns
    names.tell("http://host99")
    assert (tmp_path / FILE).stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "hostname",
    [
        "",
        " ",
        "localhost:8080",
        "ftp://host",
        "http://",
        "http://me:pass@host",
        "http://host/?a=b",
        "http://[::1",
        "http://" + "x" * 300,
    ],
)
def test_what_is_no_name_is_overlooked(tmp_path: Path, hostname: str) -> None:
    names = ToldNames(tmp_path)
    names.tell(hostname)
    assert names.names() == []
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"http://a": "x"}', b'{"ftp://a": 1}', b"\xff"])
def test_a_file_that_makes_no_sense_is_overlooked(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    names = ToldNames(tmp_path)
    assert names.names() == []
    names.tell("http://a")
    assert names.names() == ["http://a"]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    names = ToldNames(tmp_path / "file")
    names.tell("http://a")
    assert names.names() == ["http://a"]


UPLOAD = "/data/upload/1/a.png"


@pytest.mark.parametrize(
    ("url", "asked", "target", "says"),
    [
        ("http://ls", UPLOAD, f"https://ls{UPLOAD}", "redirects to https://ls; set LABEL_STUDIO_URL=https://ls"),
        ("http://ls:8080", UPLOAD, f"https://ls{UPLOAD}", "set LABEL_STUDIO_URL=https://ls"),
        ("http://ls", UPLOAD, f"https://www.ls:8443{UPLOAD}", "set LABEL_STUDIO_URL=https://www.ls:8443"),
        ("http://ls", UPLOAD, f"https://ls/sub{UPLOAD}", "set LABEL_STUDIO_URL=https://ls/sub"),
        ("http://ls/sub", f"/sub{UPLOAD}", f"https://ls/sub{UPLOAD}", "set LABEL_STUDIO_URL=https://ls/sub"),
        ("http://ls", UPLOAD, "https://ls/", "set LABEL_STUDIO_URL=https://ls"),
        ("https://ls", UPLOAD, f"http://ls{UPLOAD}", "the key would travel unencrypted"),
        ("http://ls", UPLOAD, "http://ls/user/login/?next=/data", "login page"),
        ("http://ls", UPLOAD, "https://sso.example/oauth2/authorize?x=y", "login page"),
        ("http://ls", UPLOAD, f"https://ls/user/login/?next={UPLOAD}", "login page"),
        ("http://ls", "/data/local-files?d=a", "http://ls/data/local-files/?d=a", None),
        ("http://ls", "/tasks/1/resolve/?fileuri=x", "https://bucket.example/a.png?sign=y", None),
        ("http://ls", UPLOAD, "http://ls:9000/bucket/b.png", None),
    ],
)
def test_redirects_that_tell_of_a_wrong_setting(url: str, asked: str, target: str, says: str | None) -> None:
    host = url.removesuffix("/sub")
    trouble = redirect_trouble(url, host + asked, target)
    assert (trouble is None) if says is None else (trouble is not None and says in trouble)
