"""Pickles read as data: plain containers, numbers, strings, bytes and NumPy arrays; nothing in the file is imported.

A pickle can name any function and have it called. Here a name is only looked up in `PLAIN_GLOBALS`, where NumPy's own
names lead to functions of this file: they build arrays of plain numbers, and NumPy's own code that restores types or
objects never sees the file's content.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBER = re.compile(r"\?|b1|[iu][1248]|f[248]|c(8|16)")


class _Dtype:
    """Stands for the `numpy.dtype` of a number while a pickle is read."""

    def __init__(self, code: str) -> None:
        if not _NUMBER.fullmatch(code):
            raise pickle.UnpicklingError(f"it holds values of type {code!r}, which are not plain numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # the rest of it describes structures and objects


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array that takes its content from a pickle."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it holds an array of something other than plain numbers")
        super().__setstate__((1, shape, dtype.dtype, bool(fortran_order), raw))  # type: ignore[arg-type]


def _dtype(code: str, *_: Any) -> _Dtype:
    return _Dtype(code)


def _reconstruct(*_: Any) -> _Array:
    return np.empty(0, np.uint8).view(_Array)


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.dtype, count=1)[0]


def _shaped(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _flat(raw: bytes, code: str) -> NDArray[Any]:
    return np.frombuffer(raw, _Dtype(code).dtype)


def _no_bytes() -> bytes:
    return b""


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes in the encoding {encoding!r}")
    return text.encode("latin1")


PLAIN_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,  # bytes up to protocol 2, and empty ones:
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): "numpy.ndarray",  # only handed to _reconstruct, which needs no such hint
    ("numpy", "dtype"): _dtype,
    ("numpy", "frombuffer"): _flat,
    **{(module, name): admitted for module in ("builtins", "__builtin__")
       for name, admitted in (("set", set), ("frozenset", frozenset))},
    **{(f"numpy.{core}.{module}", name): admitted for core in ("core", "_core")
       for module, name, admitted in (
           ("multiarray", "_reconstruct", _reconstruct),
           ("multiarray", "scalar", _scalar),
           ("numeric", "_frombuffer", _shaped),
       )},
}  # fmt: skip
"""What a plain pickle may refer to by module and name, and what stands for it; NumPy 1 and 2, all protocols."""


def check_claims(content: bytes) -> None:
    """Raise `UnpicklingError` for a pickle that would make an unpickler allocate more than the pickle's own size: its
    memo and byte arrays are allocated as large as the pickle claims, before their content is read."""
    for operation, value, _ in pickletools.genops(content):
        claims = "PUT" in operation.name or "GET" in operation.name or operation.name == "BYTEARRAY8"
        size = len(value) if isinstance(value, (bytes, bytearray)) else value
        if claims and isinstance(size, int) and size > len(content):
            raise pickle.UnpicklingError(f"it claims {size} entries or bytes, but has {len(content)} bytes")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN_GLOBALS:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}; only plain containers, numbers, strings, bytes and arrays are read"
            )
        return PLAIN_GLOBALS[module, name]

    def persistent_load(self, reference: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to {reference!r}, which is outside the file")


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle file; arrays are those of plain numbers, some of them read-only.

    Raises ValueError naming what it refers to besides plain data, or saying that it is damaged or not a pickle; OSError
    if the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file).load()
        except OSError:
            raise
        except Exception as error:  # an untrusted file can make an unpickler raise anything
            raise ValueError(f"{path} is not a pickle of plain data: {error}") from None
