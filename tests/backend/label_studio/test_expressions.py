"""Protects the reading of values in configs: what the editor of Label Studio 1.23.2 makes of the same expressions."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.label_studio.expressions import MissingValueError, evaluate, has_variable, look_up

DATA: dict[str, Any] = {
    "image": "a.png",
    "image.url": "flat",
    "images": [{"url": "0.png", "sizes": [1, 2]}, "1.png"],
    "a": {"b": {"c": "deep"}, "b.c": "never", "": "empty"},
    "n": 7,
    "half": 0.5,
    "whole": 7.0,
    "yes": True,
    "none": None,
    "list": ["x", 1],
    "{braces}": "braces",
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("image", "a.png"),
        ("image.url", "flat"),
        ("images[0].url", "0.png"),
        ("images.0.url", "0.png"),
        ("[images][0][url]", "0.png"),
        ("images[1]", "1.png"),
        ("images[1][0]", "1"),
        ("images[0].sizes[1]", 2),
        ("a.b.c", "deep"),
        ("a..b.c", "deep"),
        ("a[b.c]", "never"),
        ("a[]", "empty"),
        ("images[0", DATA["images"][0]),
        ("images[", DATA["images"]),
        ("images[00].url", None),
        ("images[-1]", None),
        ("images[2]", None),
        ("images[9999999999]", None),
        ("images.url", None),
        (".image", None),
        ("n.x", None),
        ("none.x", None),
        ("nothing", None),
        ("nothing.at[0].all", None),
    ],
)
def test_paths(path: str, expected: Any) -> None:
    assert look_up(DATA, path) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("$images", DATA["images"]),
        ("$images[0].url", "0.png"),
        ("${braces}", "braces"),
        ("$nothing", None),
        ("", ""),
        ("plain", "plain"),
        ("$", "$"),
        ("$ $", "$ $"),
        ("https://host/dir/$image", "https://host/dir/a.png"),
        ("$image/$images[0].url?n=$n", "a.png/0.png?n=7"),
        ("$image$image", "a.pnga.png"),
        ("$image-x", "a.png-x"),
        ("$half $whole $yes $list", "0.5 7 true x,1"),
        ("$image.url.", None),  # one variable to its end, which is not in the data
    ],
)
def test_values(expression: str, expected: Any) -> None:
    assert evaluate(expression, DATA) == expected


@pytest.mark.parametrize(
    ("expression", "variable"),
    [
        ("x/$nothing", "$nothing"),
        ("$image/$none", "$none"),
        ("x/$a", "$a"),
        ("x/$images", "$images"),
        ("/$n.jpg", "$n.jpg"),
    ],
)
def test_a_text_names_the_variable_that_it_lacks(expression: str, variable: str) -> None:
    with pytest.raises(MissingValueError) as error:
        evaluate(expression, DATA)
    assert str(error.value) == variable


def test_what_depends_on_the_task() -> None:
    assert has_variable("https://host/$name")
    assert not has_variable("https://host/$")
    assert not has_variable("https://host/$-")


@given(st.text(alphabet="$a.[]{}0 /", max_size=30))
def test_any_expression_has_a_value_or_lacks_a_variable(expression: str) -> None:
    with suppress(MissingValueError):
        evaluate(expression, {"a": ["b", {"0": "c"}], "": {}})


def test_long_expressions_and_values_take_no_long_time() -> None:
    begin = time.perf_counter()
    with pytest.raises(MissingValueError, match="too long"):
        evaluate("$a$a " * 20_000, {"a": "x" * (1 << 20)})
    look_up({"a": 1}, "a" + "[0]." * 50_000)
    look_up({"a": 1}, "[" * 100_000)
    assert time.perf_counter() - begin < 2
