"""Protects the reading of JSON that strict parsers refuse for one value somewhere."""

from __future__ import annotations

import gc
import json
import math
import re
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.label_studio import json_bodies
from backend.label_studio.json_bodies import MAX_CONTAINERS, MAX_VALUES, loads

ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters() | st.sampled_from('"\\\ud800'), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["NaN", '"', "\\"]), inner, max_size=3),
    max_leaves=10,
)


@given(ODD, st.booleans())
def test_what_python_writes_is_read_as_a_browser_would(value: Any, escaped: bool) -> None:
    """NaN and the like are null, half a surrogate pair is U+FFFD, and all the rest is as it was."""

    def expected(value: Any) -> Any:
        match value:
            case float():
                return value if math.isfinite(value) else None
            case str():
                return re.sub("[\ud800-\udfff]", "\ufffd", value)
            case list():
                return [expected(inner) for inner in value]
            case dict():
                return {key: expected(inner) for key, inner in value.items()}
        return value

    raw = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    assert loads(raw) == expected(value)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"[NaN, -Infinity, Infinity, 1e999, -1e999, 1" + b"0" * 400 + b"]", [None] * 6),
        (b'["\\ud800", "a\\uDC00b", "\\udc00\\ud83d\\ude00\\ud83d"]', ["\ufffd", "a\ufffdb", "\ufffd\U0001f600\ufffd"]),
        (b'[NaN, "\\\\ud800 \\" NaN -Infinity 1e999"]', [None, '\\ud800 " NaN -Infinity 1e999']),
        (b'{"\\ud800": NaN}', {"\ufffd": None}),
        (b'["\xed\xa0\x80"]', ["\ufffd"]),
    ],
)
def test_values_that_json_has_not(raw: bytes, expected: Any) -> None:
    assert loads(raw) == expected


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[nan]", b'{"a" NaN}', b"\xff\xfe", b'["\xff"]', b'"\\ud8', b"[1,]", b"[--1]"]
)
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError):
        loads(raw)


@pytest.mark.parametrize("piece", [b'"', b'\\"', b'"\\"', b"\\ud800", b"[", b"-", b"NaN", b"1"])
def test_nothing_takes_quadratic_time(piece: bytes) -> None:
    def seconds(count: int) -> float:
        begin = time.process_time()
        try:
            loads(b'["' + piece * count)
        except orjson.JSONDecodeError:
            return time.process_time() - begin
        raise AssertionError

    seconds(1000)
    assert seconds(100_000) < 2.0  # quadratic would take minutes


@pytest.mark.parametrize(
    "raw",
    [
        b"[" + b"[]," * MAX_CONTAINERS + b"0]",
        b"[" + b'{"a":' * MAX_CONTAINERS,
        b"[" + b"0," * (MAX_VALUES + 1) + b"0]",
    ],
    ids=["lists", "objects", "numbers"],
)
def test_more_values_than_any_task_has_are_refused_before_they_are_made(
    raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_bodies, "_parsed", lambda raw: pytest.fail("it was parsed"))
    with pytest.raises(orjson.JSONDecodeError, match="more than 500,000 lists and objects"):
        loads(raw)


def test_as_many_values_as_are_allowed_are_read() -> None:
    assert len(loads(b"[" + b"[]," * (MAX_CONTAINERS - 2) + b"0]")) == MAX_CONTAINERS - 1


@given(st.binary(max_size=60), st.sampled_from([b"a", b"ab", b"aba"]), st.integers(0, 60))
def test_searching_in_pieces_finds_what_searching_at_once_does(raw: bytes, wanted: bytes, position: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_bodies, "_PIECE", 4)
        assert json_bodies.find(raw, wanted, position) == raw.find(wanted, position)
        if wanted != b"aba":  # which may overlap itself
            assert json_bodies.count(raw, wanted) == raw.count(wanted)


def test_after_a_long_text_the_interpreter_belongs_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty long texts one after the other would keep everybody from answering anything for the time of all."""
    pauses: list[float] = []
    monkeypatch.setattr(json_bodies.time, "sleep", pauses.append)
    with json_bodies.turn(100):
        pass
    assert pauses == []
    begin = time.thread_time()
    with json_bodies.turn(2 << 20):
        assert not gc.isenabled()
        sum(range(3_000_000))
        took = time.thread_time() - begin
        assert not json_bodies._turn.acquire(blocking=False)
    assert took <= pauses[0] < took + 1
    assert gc.isenabled()
    assert json_bodies._turn.acquire(blocking=False)
    json_bodies._turn.release()


def test_what_label_studio_says_may_have_many_numbers() -> None:
    raw = b"[" + b"0," * (MAX_VALUES + 1) + b"0]"
    assert len(loads(raw, is_trusted=True)) == MAX_VALUES + 2


def test_a_text_that_is_too_deep_is_not_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for what to repair would hold the interpreter for longer than parsing."""
    monkeypatch.setattr(json_bodies, "_STRING_OR_NUMBER", None)
    with pytest.raises(orjson.JSONDecodeError, match="depth"):
        loads(b"[" * 100_000)
