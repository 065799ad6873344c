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

from skipclick.masks import BoxMask

_CHANNELS = 4
_WORD_BITS = 8
_LENGTH_BITS = np.array([3, 4, 8, 16])
_LONGEST_RUN = 1 << 16
_HEADER_BITS = 32 + 5 + 4 * 4
_RECORD_BYTES = 5  # up to 3 + 16 + 8 bits, starting at any bit of a byte


def encode(mask: BoxMask | NDArray[np.bool_] | NDArray[np.uint8]) -> list[int]:
    """Label Studio's RLE of a mask: alpha 255 on the object, 0 elsewhere.

    An array is bool or uint8 (H, W), not zero on the object. Of a `BoxMask` only the box is processed.
    """
    if not isinstance(mask, BoxMask):
        if mask.ndim != 2 or mask.size == 0 or mask.dtype not in (np.bool_, np.uint8):
            raise ValueError(f"a mask must be bool or uint8 of shape (H, W), not empty; got {mask.dtype} {mask.shape}")
        mask = BoxMask(
            (mask.shape[0], mask.shape[1]), (0, 0, mask.shape[0], mask.shape[1]), mask.astype(np.bool_, copy=False)
        )
    num_values = mask.size[0] * mask.size[1] * _CHANNELS
    lengths, is_object = _runs(_CHANNELS * _changes(mask), num_values)
    kinds = np.searchsorted(1 << _LENGTH_BITS, lengths)
    length_bits = _LENGTH_BITS[kinds]
    prefixes = ((0b100 | kinds) << length_bits) | (lengths - 1)
    records = (prefixes << _WORD_BITS) | np.where(is_object, 255, 0)
    return list(_pack(_header(num_values), records, 3 + length_bits + _WORD_BITS).tobytes())


def _changes(mask: BoxMask) -> NDArray[np.int64]:
    """Where the mask changes along its pixels in row-major order: object, background, object, ..."""
    top, left, bottom, right = mask.box
    # Eight pixels to a byte. At least one bit of background behind each row keeps the rows apart.
    height, row_bytes = bottom - top, (right - left) // 8 + 1
    words = np.zeros(-(-height * row_bytes // 8), np.uint64)
    now: NDArray[np.uint8] = words.view(np.uint8)
    packed = np.packbits(mask.pixels, axis=1)
    now[: height * row_bytes].reshape(height, row_bytes)[:, : packed.shape[1]] = packed
    before = now >> np.uint8(1)
    before[1:] |= now[:-1] << np.uint8(7)
    np.bitwise_xor(now, before, out=now)
    # Few words hold a change; only these are looked at bit by bit.
    places = np.flatnonzero(words != 0)
    bits = np.flatnonzero(np.unpackbits(words[places].view(np.uint8)).view(np.bool_))
    row, column = np.divmod(places[bits >> 6] * 64 + (bits & 63), 8 * row_bytes)
    changes: NDArray[np.int64] = (top + row) * mask.size[1] + left + column
    if right - left < mask.size[1]:
        return changes
    # An object that touches the right edge and the next row's left one goes on: there is no change.
    again = np.zeros(changes.size + 1, np.bool_)
    again[1:-1] = changes[1:] == changes[:-1]
    return changes[~(again[1:] | again[:-1])]


def _runs(changes: NDArray[np.int64], num_values: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Lengths (in values, at most 65,536) and contents of the runs between changes."""
    lengths = np.diff(changes, prepend=0, append=num_values)
    is_object = np.arange(lengths.size) % 2 == 1
    lengths, is_object = lengths[lengths > 0], is_object[lengths > 0]
    num_pieces = -(-lengths // _LONGEST_RUN)
    pieces = np.full(num_pieces.sum(), _LONGEST_RUN)
    pieces[np.cumsum(num_pieces) - 1] = lengths - (num_pieces - 1) * _LONGEST_RUN
    return pieces, np.repeat(is_object, num_pieces)


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

    Raises ValueError if the stream is not one: values that are not bytes, a word size other than 8 bits, an
    image of another size than height × width, an end before all values have come. Trailing bytes are ignored.
    """
    num_values = height * width * _CHANNELS
    stream, length_bits = _read_header(rle, num_values)
    starts = np.array(_record_starts(stream, length_bits), np.int64)
    padded = np.frombuffer(stream + bytes(_RECORD_BYTES), np.uint8)
    windows = _bits(padded, starts, 8 * (_RECORD_BYTES - 1))  # the longest prefix and any bits behind it
    kinds = windows >> 29
    sizes = np.array(length_bits)[kinds & 3]
    lengths = (windows >> (29 - sizes) & ((1 << sizes) - 1)) + 1
    ends = np.cumsum(lengths)
    needed = int(np.searchsorted(ends, num_values)) + 1  # records
    if needed > len(ends):
        done = int(ends[-1]) if len(ends) else 0
        raise ValueError(f"the RLE is truncated: it ends after {done} of {num_values} values")
    if ends[needed - 1] > num_values:
        raise ValueError(f"the RLE is damaged: its records hold more than the {num_values} values announced")
    return _alpha(padded, kinds[:needed] >= 4, starts[:needed] + 3 + sizes[:needed], lengths[:needed]).reshape(
        height, width
    )


def _record_starts(stream: bytes, length_bits: list[int]) -> list[int]:
    """The position of the first bit of each complete record.

    Where a run ends depends on its first three bits alone. So these are extracted for every position at once, and all
    that remains to be done run by run is a look-up and an addition.
    """
    padded = stream + bytes(_RECORD_BYTES)
    bits = np.unpackbits(np.frombuffer(padded, np.uint8))
    first_three = (bits[:-2] << 2 | bits[1:-1] << 1 | bits[2:]).tobytes()
    run_bits = [0] * 4 + [3 + size + _WORD_BITS for size in length_bits]
    num_bits = 8 * len(stream)
    starts = []
    position = _HEADER_BITS
    while position < num_bits:
        record_bits = run_bits[first_three[position]]
        if not record_bits:
            size = length_bits[first_three[position]]
            first_byte, first_bit = divmod(position + 3, 8)
            window = int.from_bytes(padded[first_byte : first_byte + _RECORD_BYTES], "big")
            length = (window >> (8 * _RECORD_BYTES - first_bit - size) & ((1 << size) - 1)) + 1
            record_bits = 3 + size + _WORD_BITS * length
        if position + record_bits > num_bits:
            break
        starts.append(position)
        position += record_bits
    return starts


def _alpha(
    padded: NDArray[np.uint8], is_run: NDArray[np.bool_], contents: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Every fourth value, beginning with the fourth, of records whose values begin at the bits `contents`."""
    # A literal becomes as many runs of one value as it holds.
    copies = np.where(is_run, 1, lengths)
    within = np.arange(copies.sum()) - np.repeat(np.cumsum(copies) - copies, copies)
    values = _bits(padded, np.repeat(contents, copies) + _WORD_BITS * within, _WORD_BITS).astype(np.uint8)
    ends = np.cumsum(np.repeat(np.where(is_run, lengths, 1), copies)) // _CHANNELS  # of runs, in pixels
    begins = np.concatenate(([0], ends[:-1]))
    shown = ends > begins  # a run of fewer than four values may hold no alpha
    steps = np.zeros(ends[-1], np.uint8)
    steps[begins[shown]] = np.diff(values[shown], prepend=np.uint8(0))  # modulo 256, as the sums below
    return np.cumsum(steps, dtype=np.uint8)


def _bits(padded: NDArray[np.uint8], first_bits: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """`size` bits, at most 32, that begin at each of `first_bits`, of a stream with padding bytes at its end."""
    first_bytes, shifts = np.divmod(first_bits, 8)
    window = np.zeros(len(first_bits), np.int64)
    for k in range(_RECORD_BYTES):
        window = window << 8 | padded[first_bytes + k]
    bits: NDArray[np.int64] = window >> (8 * _RECORD_BYTES - size - shifts) & ((1 << size) - 1)
    return bits


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
