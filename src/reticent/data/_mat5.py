"""Arrays of numbers in a MATLAB 5 file, read with every length checked.

Room: data. May import NumPy.

SciPy's reader trusts the lengths that a file states: a damaged one ended the process (found by fuzzing).
Public data sets use little of the format, which is all that is read here: real arrays of numbers, compressed
or not.

Sources:
    [1] The MathWorks, "MAT-File Format", level 5.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

_HEADER: Final = 128
_MATRIX: Final = 14
_COMPRESSED: Final = 15
_LARGEST: Final = 1 << 33  # bytes of one array, uncompressed
_COMPLEX: Final = 0x0800
# Types of stored numbers, and classes of arrays [1, tables 1-1 and 1-3].
_TYPES: Final = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13)
_STORED: Final = dict(zip(_TYPES, "i1 u1 i2 u2 i4 u4 f4 f8 i8 u8".split(), strict=True))
_CLASSES: Final = dict(zip(range(6, 16), "f8 f4 i1 u1 i2 u2 i4 u4 i8 u8".split(), strict=True))


def read_mat5(path: Path) -> dict[str, np.ndarray]:
    """Name -> array; members that are no real arrays of numbers are passed over.

    Raises:
        ValueError: it is no MATLAB 5 file, or is damaged.
    """
    raw = memoryview(path.read_bytes())
    if len(raw) < _HEADER or bytes(raw[126:128]) not in (b"IM", b"MI"):
        raise ValueError("no header")
    order = "<" if bytes(raw[126:128]) == b"IM" else ">"
    found = {}
    for kind, data in _elements(raw[_HEADER:], order, padded=False):
        if kind == _COMPRESSED:
            ((kind, data), *more) = _elements(memoryview(_inflated(data)), order, padded=True)
            if more:
                raise ValueError("more than one array in a compressed element")
        if kind != _MATRIX:
            raise ValueError("an element that is no array")
        named = _array(data, order)
        if named is not None:
            found[named[0]] = named[1]
    return found


def _elements(data: memoryview, order: str, *, padded: bool) -> Iterator[tuple[int, memoryview]]:
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError("cut in a tag")
        kind, size = struct.unpack_from(f"{order}2I", data, at)
        if kind >> 16:  # a small element: type and size in one word, data in the other
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise ValueError("a small element of more than four bytes")
            yield kind, data[at + 4 : at + 4 + size]
            at += 8
            continue
        if size > len(data) - at - 8:
            raise ValueError("cut in an element")
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + size + (-size % 8 if padded else 0)


def _inflated(data: memoryview) -> bytes:
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, _LARGEST)
    except zlib.error as error:
        raise ValueError("compressed data are damaged") from error
    if not stream.eof:
        raise ValueError("compressed data are cut, or too large")
    return out


def _array(data: memoryview, order: str) -> tuple[str, np.ndarray] | None:
    parts = list(_elements(data, order, padded=True))
    if len(parts) < 4 or [kind for kind, _ in parts[:3]] != [6, 5, 1] or len(parts[0][1]) < 8:
        return None
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    dims = np.frombuffer(parts[1][1], f"{order}i4") if len(parts[1][1]) % 4 == 0 else np.array([-1])
    if (flags & 0xFF) not in _CLASSES or flags & _COMPLEX or parts[3][0] not in _STORED:
        return None
    if len(dims) < 2 or len(dims) > 32 or (dims < 0).any():
        raise ValueError("an array without a shape")
    stored = np.dtype(f"{order}{_STORED[parts[3][0]]}")
    shape = tuple(int(n) for n in dims)
    if math.prod(shape) * stored.itemsize != len(parts[3][1]):
        raise ValueError("an array whose numbers are not as many as its shape says")
    values = np.frombuffer(parts[3][1], stored).reshape(shape, order="F")
    with np.errstate(invalid="ignore"):
        return bytes(parts[2][1]).decode("latin-1"), values.astype(_CLASSES[flags & 0xFF])
