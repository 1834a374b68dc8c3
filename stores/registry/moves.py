"""What promotion, rollback and a shadow make of the registry's state: pure rules."""

from dataclasses import replace

from mesh.errors import FailedPrecondition
from stores.registry.port import State

# The promoted version and those before it that a server of models keeps: rankers ask for the one
# before until they see the new state, and a rollback finds its version there.
KEPT = 3


def promoted(state: State, number: int) -> State:
    """The version's turn; the one that served is the latest of the earlier ones."""
    if state.promoted == number:
        raise FailedPrecondition(f"version {number} is promoted already")
    before = () if state.promoted is None else (state.promoted,)
    earlier = before + tuple(each for each in state.earlier if each != number)
    following = replace(state, promoted=number, earlier=earlier)
    # It would be held against itself.
    return without_shadow(following) if state.shadow == number else following


def rolled_back(state: State) -> State:
    """The turn of the latest of the earlier ones.

    Raises:
        FailedPrecondition: There is none.
    """
    if not state.earlier:
        raise FailedPrecondition("no version was promoted before this one")
    back, *earlier = state.earlier
    return replace(promoted(state, back), earlier=tuple(earlier))


def with_shadow(state: State, number: int, share: float) -> State:
    """The version scores beside the promoted one, for this share of requests (0 to 1).

    Raises:
        FailedPrecondition: It is the promoted one.
    """
    if state.promoted == number:
        raise FailedPrecondition(f"version {number} is promoted, and cannot be its own shadow")
    return replace(state, shadow=number, shadow_share=share)


def without_shadow(state: State) -> State:
    """No shadow."""
    return replace(state, shadow=None, shadow_share=0.0)


def kept(state: State) -> list[int]:
    """What a server of models keeps: the promoted version, and the latest before it."""
    if state.promoted is None:
        return []
    return [state.promoted, *state.earlier][:KEPT]
