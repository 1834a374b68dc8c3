"""Messages whose repeated fields are columns: index i of each speaks of the same thing.

Joining two is protobuf's own `MergeFrom`.
"""

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from mesh.errors import InvalidArgument

M = TypeVar("M", bound=Message)


def select(columns: M, indices: Sequence[int]) -> M:
    """The rows at `indices`, in that order, as a new message."""
    chosen = type(columns)()
    for field in columns.DESCRIPTOR.fields:
        column = getattr(columns, field.name)
        if column:
            getattr(chosen, field.name).extend([column[i] for i in indices])
    return chosen


def require_equal_lengths(columns: Message, name: str) -> int:
    """The number of rows. Raises `InvalidArgument` when the columns' lengths differ."""
    lengths = {field.name: len(getattr(columns, field.name)) for field in columns.DESCRIPTOR.fields}
    if len(set(lengths.values())) > 1:
        raise InvalidArgument(
            f"the columns of {name} differ in length",
            fields={f"{name}.{column}": f"has {length}" for column, length in lengths.items()},
        )
    return next(iter(lengths.values()))
