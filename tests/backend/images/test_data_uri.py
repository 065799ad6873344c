"""Protects the reading of `data:` URIs: what browsers overlook makes no difference, everything else does."""

from __future__ import annotations

import base64
import tracemalloc
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.images import data_uri
from backend.images.data_uri import DataUriError, data_uri_content
from backend.label_studio.references import cleaned

BYTES = bytes(range(256))
PLAIN = base64.b64encode(BYTES).decode()


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{PLAIN}",
        f"data:;base64,{PLAIN}",
        f"data:image/png;charset=x;BASE64,{PLAIN}",
        f"data:image/png;  Base64 ,{PLAIN}",
        f"data:image/png;base64,{PLAIN.rstrip('=')}",
        f"data:image/png;base64,{quote(PLAIN, safe='')}",
        f"data:image/png;base64,{PLAIN[:7]} {PLAIN[7:50]}%0A%20{PLAIN[50:]}\f",
        f"data:image/png;base64,{PLAIN}#part",
        f"data:image/png,{quote(BYTES)}",
        f"data:image/png;base64;x,{quote(BYTES)}",
    ],
)
def test_data_uris_as_browsers_read_them(uri: str) -> None:
    assert data_uri_content(cleaned(uri), 300) == BYTES


def test_base64_in_lines_as_mime_encoders_write_it() -> None:
    uri = "DATA:image/png;base64," + base64.encodebytes(BYTES * 3).decode().replace("\n", "\r\n")
    assert data_uri_content(cleaned(uri), 1000) == BYTES * 3


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,AAAAA", "not base64"),
        ("data:image/png;base64,AA=A", "not base64"),
        ("data:image/png;base64,AAA==", "not base64"),
        ("data:image/png;base64,A-_A", "not base64"),
        ("data:image/png;base64,AAAÄ", "not base64"),
        ("data:image/png;base64," + "AAAA" * 101, "IMAGE_MAX_BYTES=300"),
        ("data:image/png," + "%41" * 301, "IMAGE_MAX_BYTES=300"),
    ],
)
def test_data_uris_that_browsers_do_not_read(uri: str, why: str) -> None:
    with pytest.raises(DataUriError, match=why):
        data_uri_content(cleaned(uri), 300)


@given(st.binary(max_size=60), st.sampled_from(["", "\n", " ", "%0D%0A"]), st.booleans())
def test_any_content_comes_back(content: bytes, between: str, padded: bool) -> None:
    text = base64.b64encode(content).decode()
    text = between.join(text if padded else text.rstrip("="))
    assert data_uri_content(cleaned(f"data:image/png;base64,{text}"), 60) == content


LIMIT = 1 << 30


@given(st.text("%4aZ+/=é", max_size=40), st.integers(4, 12))
def test_escapes_are_the_same_wherever_the_text_is_cut(payload: str, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_uri, "_PIECE", piece)
        assert data_uri_content(f"data:,{payload}", LIMIT) == unquote_to_bytes(payload)


@given(st.binary(max_size=60), st.integers(1, 5), st.booleans())
def test_base64_is_the_same_wherever_it_is_cut(content: bytes, quads: int, is_escaped: bool) -> None:
    text = base64.b64encode(content).decode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_uri, "_PIECE", 4 * quads)
        assert data_uri_content(f"data:;base64,{quote(text) if is_escaped else text}", LIMIT) == content


@pytest.mark.parametrize("text", ["QUJD=QUJD", "QUI=QUJD", "QQ==QUJD", "Q===", "A", "QUJDRA-_", "===="])
def test_padding_is_at_the_end_alone(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_uri, "_PIECE", 4)
    with pytest.raises(DataUriError, match="not base64"):
        data_uri_content(f"data:;base64,{text}", LIMIT)


def test_a_text_of_escapes_takes_little_more_memory_than_it_has() -> None:
    """Forty times as much it would be if all were taken apart at once."""
    uri = "data:," + "%41" * (4 << 20)
    tracemalloc.start()
    try:
        assert len(data_uri_content(uri, LIMIT)) == 4 << 20
        assert tracemalloc.get_traced_memory()[1] < 6 * len(uri)
    finally:
        tracemalloc.stop()
