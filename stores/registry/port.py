"""The model registry, as services see it: which versions serve."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class State:
    """Which versions serve.

    Args:
        promoted: The version whose scores count; None before the first.
        earlier: Those that were promoted before it, the latest first.
        shadow: The version that is scored beside it; None for none.
        shadow_share: The share of requests that the shadow scores, 0 to 1.
    """

    promoted: int | None = None
    earlier: tuple[int, ...] = ()
    shadow: int | None = None
    shadow_share: float = 0.0


class ModelRegistry(Protocol):
    """Both block, and raise OSError or ValueError when the registry cannot be read."""

    def state(self) -> State:
        """The newest; nothing promoted before the first."""
        ...

    def model_file(self, number: int) -> Path:
        """The version as ONNX; raises `mesh.errors.NotFound`."""
        ...
