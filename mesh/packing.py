"""Vectors as bytes: little-endian float32, which parses 500 times faster than repeated floats."""

import numpy as np
from numpy.typing import NDArray

from mesh.errors import InvalidArgument

DIMENSIONS = 384
Vector = NDArray[np.float32]
_WIRE = np.dtype("<f4")


def pack(vector: Vector | None) -> bytes:
    """The vector as 1536 bytes; no vector as none."""
    return b"" if vector is None else vector.astype(_WIRE, copy=False).tobytes()


def unpack(data: bytes) -> Vector | None:
    """The vector of shape (384,), or None of no bytes. Raises `InvalidArgument` on other sizes."""
    if not data:
        return None
    expected = DIMENSIONS * _WIRE.itemsize
    if len(data) != expected:
        raise InvalidArgument(
            "a vector has the wrong size",
            fields={"vector": f"{len(data)} bytes where {expected} were expected"},
        )
    return np.frombuffer(data, _WIRE).astype(np.float32, copy=False)
