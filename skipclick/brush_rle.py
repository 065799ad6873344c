"""Label Studio's brush RLE: a mask as a list of byte values, and back.

The bit stream is that of the npm package `@thi.ng/rle-pack`, most significant bit first, over the RGBA values
of the image in row-major order, the mask repeated in all four channels:

    header   32 bits  N = 4 · width · height
              5 bits  word size − 1 (always 7: values have 8 bits)
          4 × 4 bits  s₀ − 1 … s₃ − 1, the sizes a length may have (written as 3, 4, 8, 16 bits)
    records until N values have come
              1 bit   1 = run, 0 = literal
              2 bits  t, which of the four sizes the length has
             sₜ bits  n − 1
              a run: 8 bits, the value repeated n times; a literal: n values of 8 bits
    zero bits up to a whole byte

`encode` writes runs only, which the browser's own encoder reproduces to the bit; `decode` reads both kinds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_CHANNELS = 4
_WORD_BITS = 8
_LENGTH_BITS = np.array([3, 4, 8, 16])
_LONGEST_RUN = 1 << 16
_HEADER_BITS = 32 + 5 + 4 * 4
_RECORD_BYTES = 5  # up to 3 + 16 + 8 bits, begun anywhere within a byte


def encode(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> list[int]:
    """Label Studio's RLE of a mask, bool or uint8 (H, W): alpha 255 where it is not zero, 0 elsewhere."""
    if mask.ndim != 2 or mask.size == 0 or mask.dtype not in (np.bool_, np.uint8):
        raise ValueError(f"a mask must be bool or uint8 of shape (H, W), not empty; got {mask.dtype} {mask.shape}")
    lengths, is_object = _runs(mask)
    kinds = np.searchsorted(1 << _LENGTH_BITS, lengths)
    length_bits = _LENGTH_BITS[kinds]
    prefixes = ((0b100 | kinds) << length_bits) | (lengths - 1)
    records = (prefixes << _WORD_BITS) | np.where(is_object, 255, 0)
    return list(_pack(_header(mask.size * _CHANNELS), records, 3 + length_bits + _WORD_BITS).tobytes())


def _runs(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Lengths (in values, four to a pixel, at most 65,536) and contents of the runs of equal pixels."""
    pixels = mask.reshape(-1).astype(np.bool_, copy=False)
    starts = np.concatenate(([0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1))
    lengths = np.diff(starts, append=pixels.size) * _CHANNELS
    num_pieces = -(-lengths // _LONGEST_RUN)
    pieces = np.full(num_pieces.sum(), _LONGEST_RUN)
    pieces[np.cumsum(num_pieces) - 1] = lengths - (num_pieces - 1) * _LONGEST_RUN
    return pieces, np.repeat(pixels[starts], num_pieces)


def _header(num_values: int) -> int:
    if num_values >= 1 << 32:
        raise ValueError(f"{num_values} values do not fit the format's 32 bits: the mask has too many pixels")
    header = num_values << 5 | (_WORD_BITS - 1)
    for bits in _LENGTH_BITS:
        header = header << 4 | (int(bits) - 1)
    return header


def _pack(header: int, records: NDArray[np.int64], record_bits: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The header and then all records as one bit stream, zero bits up to a whole byte.

    Each record is shifted to its place within the five bytes that it may touch. Records share bytes but no
    bits, so adding the bytes up joins them.
    """
    ends = _HEADER_BITS + np.cumsum(record_bits)
    first_bytes, first_bits = np.divmod(ends - record_bits, 8)
    aligned = records << (8 * _RECORD_BYTES - first_bits - record_bits)
    num_bytes = -(-int(ends[-1]) // 8)
    stream = np.zeros(num_bytes + _RECORD_BYTES, np.uint8)
    header_bytes = -(-_HEADER_BITS // 8)
    header <<= 8 * header_bytes - _HEADER_BITS
    stream[:header_bytes] = np.frombuffer(header.to_bytes(header_bytes, "big"), np.uint8)
    for k in range(_RECORD_BYTES):
        np.add.at(stream, first_bytes + k, (aligned >> (8 * (_RECORD_BYTES - 1 - k)) & 255).astype(np.uint8))
    return stream[:num_bytes]


def decode(rle: Sequence[int], height: int, width: int) -> NDArray[np.uint8]:
    """The alpha values, uint8 (H, W), of a brush RLE as Label Studio stores it.

    Raises ValueError where the stream is not one: values that are no bytes, a word size other than 8 bits, an
    image of another size than height × width, an end before all values have come. What follows is ignored.
    """
    num_values = height * width * _CHANNELS
    stream, length_bits = _read_header(rle, num_values)
    num_bits = 8 * len(stream)
    padded = stream + bytes(_RECORD_BYTES)
    values = np.empty(num_values, np.uint8)
    position, done = _HEADER_BITS, 0
    while done < num_values:
        first_byte, first_bit = divmod(position, 8)
        window = int.from_bytes(padded[first_byte : first_byte + _RECORD_BYTES], "big")
        left = 8 * _RECORD_BYTES - first_bit - 3
        is_run, size = window >> (left + 2) & 1, length_bits[window >> left & 3]
        left -= size
        length = (window >> left & ((1 << size) - 1)) + 1
        position += 3 + size
        end = position + _WORD_BITS * (1 if is_run else length)
        if end > num_bits:
            raise ValueError(f"the RLE is truncated: it ends after {done} of {num_values} values")
        if done + length > num_values:
            raise ValueError(f"the RLE is damaged: its records hold more than the {num_values} values announced")
        if is_run:
            values[done : done + length] = window >> (left - _WORD_BITS) & 255
        else:
            values[done : done + length] = _literal(padded, position, length)
        position, done = end, done + length
    return values[_CHANNELS - 1 :: _CHANNELS].reshape(height, width).copy()


def _read_header(rle: Sequence[int], num_values: int) -> tuple[bytes, list[int]]:
    """The stream as bytes and the four sizes of a length in bits."""
    try:
        stream = bytes(list(rle))
    except (TypeError, ValueError):
        raise ValueError("an RLE must be a sequence of integers from 0 to 255") from None
    if 8 * len(stream) < _HEADER_BITS:
        raise ValueError(f"the RLE is truncated: {len(stream)} bytes are less than its header")
    header = int.from_bytes(stream[:8], "big") >> (8 * min(8, len(stream)) - _HEADER_BITS)
    announced, word_bits = header >> 21, (header >> 16 & 31) + 1
    if word_bits != _WORD_BITS:
        raise ValueError(f"the RLE has a word size of {word_bits} bits: brush masks have {_WORD_BITS}")
    if announced != num_values:
        raise ValueError(
            f"the RLE holds {announced} values where the image needs {num_values} (4 · width · height):"
            " it belongs to an image of another size"
        )
    return stream, [(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)]


def _literal(stream: bytes, position: int, length: int) -> NDArray[np.uint8]:
    """`length` 8-bit values that begin at any bit position of a stream that has a byte to spare."""
    first_byte, shift = divmod(position, 8)
    window = np.frombuffer(stream, np.uint8, length + 1, first_byte).astype(np.uint16)
    return ((window[:-1] << shift | window[1:] >> (8 - shift)) & 255).astype(np.uint8)
