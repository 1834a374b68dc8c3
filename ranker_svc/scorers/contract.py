"""What a model says of itself, so that it never reads one feature as another.

A model names the columns that it takes, in its own order; they are found by name. What it names and
this ranker does not have is an error when the model is loaded. Ids come to it as buckets of a hash:
the numbers of buckets are the model's, the hash is here, and named so that another one is an error,
too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ranker_svc.features import CATEGORICAL, COLUMN, Features

# Entries of an ONNX file's metadata, and parameters of a model's configuration in Triton.
FEATURES_KEY = "features"
VERSION_KEY = "version"
# Names of the model's inputs.
DENSE_INPUT, CATEGORICAL_INPUT = "dense", "categorical"
HASH = "splitmix64"

_MIX_1, _MIX_2, _STEP = (
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
    np.uint64(0x9E3779B97F4A7C15),
)


@dataclass(frozen=True, slots=True)
class Field:
    """A column of ids, of CATEGORICAL; `buckets` is how many different values the model knows."""

    name: str
    buckets: int


@dataclass(frozen=True, slots=True)
class Contract:
    """The columns of a model's inputs, in its order.

    Args:
        version: Which model it is.
        dense: Names of `ranker_svc.features.DENSE`.
        categorical: Columns of `ranker_svc.features.CATEGORICAL`, with their numbers of buckets.

    Raises:
        ValueError: This ranker does not have one of the columns.
    """

    version: str
    dense: tuple[str, ...]
    categorical: tuple[Field, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.dense if name not in COLUMN]
        unknown += [field.name for field in self.categorical if field.name not in CATEGORICAL]
        if unknown:
            raise ValueError(f"takes features that this ranker does not have: {', '.join(unknown)}")
        few = [field.name for field in self.categorical if field.buckets < 2]
        if not self.dense or few:
            raise ValueError(f"has no dense feature, or less than 2 buckets: {few}")

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Self:
        """From what the model says of itself; raises ValueError with what is wrong."""
        listed = metadata.get(FEATURES_KEY)
        if not listed:
            raise ValueError(f"does not say which features it takes: '{FEATURES_KEY}' is missing")
        try:
            said: dict[str, Any] = json.loads(listed)
            dense = tuple(map(str, said["dense"]))
            fields = tuple(Field(str(f["name"]), int(f["buckets"])) for f in said["categorical"])
            hashed = said.get("hash")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"says in '{FEATURES_KEY}' what is no contract: {listed}") from error
        if fields and hashed != HASH:
            raise ValueError(f"hashes ids by {hashed}; this ranker knows {HASH}")
        return cls(metadata.get(VERSION_KEY, ""), dense, fields)

    def metadata(self) -> dict[str, str]:
        """What `read` reads."""
        fields = [{"name": field.name, "buckets": field.buckets} for field in self.categorical]
        said = {"dense": self.dense, "categorical": fields, "hash": HASH}
        return {FEATURES_KEY: json.dumps(said), VERSION_KEY: self.version}

    @property
    def input_names(self) -> set[str]:
        """What the model calls its inputs."""
        return {DENSE_INPUT, CATEGORICAL_INPUT} if self.categorical else {DENSE_INPUT}

    def inputs(self, features: Features) -> dict[str, NDArray[Any]]:
        """The model's inputs by name: float32 (n, dense), and int64 (n, categorical) if it has any.

        Column j of the second has values from 0, for no id, to `categorical[j].buckets` - 1.
        """
        columns = [COLUMN[name] for name in self.dense]
        found: dict[str, NDArray[Any]] = {
            DENSE_INPUT: np.ascontiguousarray(features.dense[:, columns], "<f4")
        }
        if self.categorical:
            found[CATEGORICAL_INPUT] = np.stack(
                [
                    bucket(features.ids[:, CATEGORICAL.index(field.name)], field)
                    for field in self.categorical
                ],
                axis=1,
            )
        return found


def bucket(ids: NDArray[np.int64], field: Field) -> NDArray[np.int64]:
    """The bucket of each id, shape (n,): 0 for no id, else from 1 on. Equal everywhere.

    The finalizer of splitmix64 over the id and the field's name, so that equal ids of two fields do
    not fall together.
    """
    salt = np.uint64(int.from_bytes(field.name.encode()[:8].ljust(8, b"\0")))
    with np.errstate(over="ignore"):
        mixed = (ids.astype(np.uint64) ^ salt) + _STEP
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
        mixed ^= mixed >> np.uint64(31)
    buckets = 1 + (mixed % np.uint64(field.buckets - 1)).astype(np.int64)
    return np.where(ids == 0, 0, buckets)
