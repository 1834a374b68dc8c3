"""How a reader looks down a feed: how far, at what, for how long, and what they like."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation.feeds import FURTHEST
from training.simulation.state import State
from training.simulation.world import Floats, Ints, World

_TYPICAL_PLACES = 24.0
_OPENING_MS = 800
_LONGEST_MS = 40_000
# Of the first place, and how it falls with the places.
_LOOKS_AT, _LOOKS_AT_LEAST, _PLACES = 0.95, 0.55, 15.0
_SILENT_CLIENTS = 0.03


@dataclass(frozen=True, slots=True)
class Acts:
    """What the reader did with each of the n posts that were on the screen.

    Args:
        seen_ms: When each came, milliseconds after the feed; int64 (n,).
        dwell_ms: For how long it stayed, int64 (n,).
        told: Whether the client tells how long, bool (n,).
        liked: bool (n,).
    """

    seen_ms: Ints
    dwell_ms: Ints
    told: NDArray[np.bool_]
    liked: NDArray[np.bool_]


def inclination(world: World, state: State, reader: int, posts: Ints, now_ms: int) -> Floats:
    """How likely the reader likes each of these posts when they look at it now, shape (n,).

    Nobody likes a post twice.
    """
    shown, liked = (
        _among(posts, numbers, len(world.posts))
        for numbers in (state.shown[reader], state.liked[reader])
    )
    likely = world.likelihood(reader, posts, now_ms, shown)
    likely[liked] = 0
    return likely


def _among(posts: Ints, numbers: set[int], count: int) -> NDArray[np.bool_]:
    """Which of the posts are among the numbers, all below `count`."""
    there = np.zeros(count, bool)
    there[list(numbers)] = True
    return np.asarray(there[posts])


def look(chance: np.random.Generator, likely: Floats) -> Acts:
    """One visit. How far the reader goes does not depend on the feed.

    A post is on the screen, then looked at, the less often the further down it is; then liked, as
    likely as the reader likes it. Who looks stays the longer the likelier they like it.

    Args:
        chance: The same for this visit whatever the feed is, so that feeds can be compared.
        likely: How likely each post is liked when looked at, in the order of the feed, shape (m,).
    """
    patience = 1 + int(chance.exponential(_TYPICAL_PLACES))
    # All that could be needed, so that a shorter feed shifts nothing.
    draws, noise = chance.random((3, FURTHEST)), chance.normal(size=FURTHEST)
    count = min(patience, FURTHEST, len(likely))
    likely, noise = likely[:count], noise[:count]
    place = np.arange(count)
    attention = _LOOKS_AT_LEAST + (_LOOKS_AT - _LOOKS_AT_LEAST) * np.exp(-place / _PLACES)
    looked = draws[0, :count] < attention
    liked = looked & (draws[1, :count] < likely)
    typical = np.where(looked, np.log(1800) + 2.4 * likely + 0.5 * liked, np.log(700))
    dwell_ms = np.minimum(np.exp(typical + 0.7 * noise), _LONGEST_MS).astype(np.int64)
    seen_ms = _OPENING_MS + np.cumsum(dwell_ms) - dwell_ms
    return Acts(seen_ms, dwell_ms, draws[2, :count] >= _SILENT_CLIENTS, liked)
