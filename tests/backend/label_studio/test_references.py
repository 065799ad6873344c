"""Protects the reading of references: what browsers overlook makes no difference, everything else does."""

from __future__ import annotations

import pytest

from backend.label_studio.references import cleaned


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (" /data/upload/1/a.png\n", "/data/upload/1/a.png"),
        ("\x00\x1f\t/a b.png \r\n", "/a b.png"),
        ("/data/\nupload/\t1/\ra.png", "/data/upload/1/a.png"),
        ("HTTPS://Host/A.png", "https://Host/A.png"),
        ("h\nttp://host/a.png", "http://host/a.png"),
        ("http:\\\\host\\a\\b.png?c\\d#e\\f", "http://host/a/b.png?c\\d#e\\f"),
        ("\\data\\upload\\a.png", "/data/upload/a.png"),
        ("S3://bucket/a\\b.png", "s3://bucket/a\\b.png"),
        ("DATA:image/png;base64,A\\", "data:image/png;base64,A\\"),
        ("\xa0/a.png", "\xa0/a.png"),
        ("", ""),
    ],
)
def test_what_browsers_overlook(given_: str, expected: str) -> None:
    assert cleaned(given_) == expected
    assert cleaned(cleaned(given_)) == expected
