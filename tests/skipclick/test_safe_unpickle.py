"""Protects reading of foreign pickles: all plain data comes back, and nothing that a file names is ever executed."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from skipclick.safe_unpickle import read_plain_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

NUMBERS = st.sampled_from(["?", "u1", "i1", "<u2", ">i4", "<i8", "<f4", ">f8", "<c16"])
SHAPES = npst.array_shapes(min_dims=0, max_dims=3, max_side=4)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.sets(st.integers())
    ),
    max_leaves=20,
)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "content.pickle"
        path.write_bytes(content)
        return path

    return write


@given(content=PLAIN, protocol=st.sampled_from(PROTOCOLS))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_plain_containers_come_back_from_every_protocol(
    content: Any, protocol: int, written: Callable[[bytes], Path]
) -> None:
    read = read_plain_pickle(written(pickle.dumps(content, protocol)))
    assert read == content
    assert type(read) is type(content)


@given(
    array=NUMBERS.flatmap(lambda code: npst.arrays(code, SHAPES)),
    fortran=st.booleans(),
    protocol=st.sampled_from(PROTOCOLS),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_arrays_come_back_from_every_protocol(
    array: NDArray[Any], fortran: bool, protocol: int, written: Callable[[bytes], Path]
) -> None:
    array = np.asfortranarray(array) if fortran else array
    (read,) = read_plain_pickle(written(pickle.dumps([array], protocol)))
    assert isinstance(read, np.ndarray)
    assert read.dtype == array.dtype.newbyteorder("=") or read.dtype == array.dtype  # NumPy may turn the bytes
    assert read.shape == array.shape
    np.testing.assert_array_equal(read, array)


def test_the_form_of_the_release_is_read(written: Callable[[bytes], Path]) -> None:
    """Its files were written by NumPy 1, whose modules had other names; numbers may be NumPy's."""
    layer = np.array([137, 80, 78, 71], np.uint8)
    content = ([layer, layer[::-1].copy()], [(0, 1), (np.int64(1), np.int64(3))])
    for protocol in (2, 3):  # these hold the names as plain lines
        old = pickle.dumps(content, protocol).replace(b"numpy._core.", b"numpy.core.")
        layers, mapping = read_plain_pickle(written(old))
        assert [one.tolist() for one in layers] == [[137, 80, 78, 71], [71, 78, 80, 137]]
        assert mapping == [(0, 1), (1, 3)]


def test_ordered_dictionaries_and_sets_are_containers(written: Callable[[bytes], Path]) -> None:
    content = [OrderedDict(a=1), {1, 2}, frozenset([3])]
    for protocol in PROTOCOLS:
        assert read_plain_pickle(written(pickle.dumps(content, protocol))) == content


class Attack:
    """Asks for a call while it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_attack_is_refused_by_name_and_does_nothing(
    protocol: int, tmp_path: Path, written: Callable[[bytes], Path]
) -> None:
    mark = tmp_path / "executed"
    attack = pickle.dumps({"masks": [Attack(os.system, f"touch {mark}")]}, protocol)
    with pytest.raises(ValueError, match=r"refers to (posix|nt)\.system; only plain containers"):
        read_plain_pickle(written(attack))
    assert not mark.exists()
    pickle.loads(attack)
    assert mark.exists(), "the attack itself does not work, so this test proves nothing"


@pytest.mark.parametrize(
    "name",
    [
        "builtins\neval",
        "builtins\ngetattr",
        "numpy\nload",
        "numpy\nfromfile",
        "numpy\nfrombuffer.__self__",
        "collections\nOrderedDict.fromkeys",
        "numpy._core.multiarray\nfromfile",
        "skipclick.safe_unpickle\nread_plain_pickle",
        "functools\npartial",
    ],
)
def test_near_names_are_no_way_in(name: str, written: Callable[[bytes], Path]) -> None:
    with pytest.raises(ValueError, match=rf"refers to {name.replace(chr(10), '.')};"):
        read_plain_pickle(written(b"c" + name.encode() + b"\n."))


def test_arrays_of_objects_are_refused(written: Callable[[bytes], Path]) -> None:
    for protocol in range(2, 6):
        with pytest.raises(ValueError, match="not a pickle of plain data"):
            read_plain_pickle(written(pickle.dumps(np.array([None, {}]), protocol)))
        with pytest.raises(ValueError, match="not plain"):
            read_plain_pickle(written(pickle.dumps(np.zeros(2, "u1,O"), protocol)))


def forged_array(code: bytes, dtype_state: bytes, shape: bytes, raw: bytes) -> bytes:
    """Pickle text (protocol 0 and 3 opcodes) of an array whose parts need not fit each other."""
    return b"".join(
        [
            b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR",
            b"(I1\n" + shape + b"cnumpy\ndtype\n(V" + code + b"\nI0\nI1\ntR" + dtype_state + b"I00\n",
            b"C" + bytes([len(raw)]) + raw + b"tb.",
        ]
    )


NUMBER_STATE = b"(I3\nV<\nNNNI-1\nI-1\nI0\ntb"


def test_a_forged_array_never_reaches_past_its_bytes(written: Callable[[bytes], Path]) -> None:
    good = forged_array(b"u1", NUMBER_STATE, b"(I2\nt", b"ab")
    assert read_plain_pickle(written(good)).tolist() == [97, 98]
    for forged in (
        forged_array(b"u1", NUMBER_STATE, b"(I200\nt", b"ab"),
        forged_array(b"u1", NUMBER_STATE, b"(I-1\nt", b"ab"),
        forged_array(b"u8", NUMBER_STATE, b"(I4611686018427387904\nI4\nt", b"abcdefgh"),
        forged_array(b"O8", b"(I3\nV|\nNNNI-1\nI-1\nI0\ntb", b"(I1\nt", b"abcdefgh"),
        forged_array(b"V8", b"(I3\nV|\nNNNI8\nI1\nI63\ntb", b"(I1\nt", b"abcdefgh"),
    ):
        with pytest.raises(ValueError, match="not a pickle of plain data"):
            read_plain_pickle(written(forged))


def test_an_objects_type_cannot_be_made_of_a_numbers_state(written: Callable[[bytes], Path]) -> None:
    """The state of a type may claim fields of objects; all but the byte order is left aside."""
    claims_objects = b"(I3\nV>\nNNNI8\nI1\nI63\ntb"
    read = read_plain_pickle(written(forged_array(b"u4", claims_objects, b"(I1\nt", b"\x00\x00\x00\x07")))
    assert read.dtype.kind == "u"
    assert read.tolist() == [7]


@pytest.mark.parametrize("content", [b"", b"\x80", b"PNG", b"\x80\x04K\x01", b"\x82\x01.", b"Pkey\n.", b"\x80\x09."])
def test_what_is_no_pickle_is_said_in_one_line(content: bytes, written: Callable[[bytes], Path]) -> None:
    with pytest.raises(ValueError, match=r"content\.pickle is not a pickle of plain data: ") as raised:
        read_plain_pickle(written(content))
    assert "\n" not in str(raised.value)


def test_every_cut_of_a_good_file_is_a_value_error(written: Callable[[bytes], Path]) -> None:
    whole = pickle.dumps(([np.arange(5, dtype=np.uint8)], [(0, 1)], {"a": {1}}), 4)
    for length in range(len(whole)):
        with pytest.raises(ValueError, match="not a pickle of plain data"):
            read_plain_pickle(written(whole[:length]))
