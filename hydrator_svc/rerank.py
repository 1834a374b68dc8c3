"""The order of a feed: by score, within rules that keep each page varied. Pure.

Page by page and place by place, the best candidate that breaks no rule comes next:

- never two posts of one author in a row;
- at most two posts of one author on a page;
- strangers' share of a page stays within its bounds, while both kinds are left.

Where every candidate that is left breaks a rule, the best of those that break the least comes next:
the share bends first, then the number, then the row. So no page is short and nothing is lost.

Among those that break the least, chance sometimes takes another than the best (`Exploration`), and
each place says how likely its post was there: what a log of feeds needs to judge other orders by.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from feed.v1.hydrator_pb2 import (
    PLACEMENT_AUTHOR_SPREAD,
    PLACEMENT_BY_SCORE,
    PLACEMENT_DISCOVERY_SHARE,
    PLACEMENT_EXPLORATION,
    Placement,
)

MAX_PER_AUTHOR = 2
# What breaking a rule weighs: more than all that bend before it.
_WRONG_KIND, _TOO_MANY, _IN_A_ROW = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Item:
    """One candidate. `index` is its place in the request."""

    index: int
    author_id: int
    is_stranger: bool
    score: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """How pages are made up.

    Args:
        page_size: Posts on a page.
        share_min: Least share of strangers' posts on a page, 0 to 1.
        share_max: Greatest share.
    """

    page_size: int
    share_min: float
    share_max: float

    def strangers(self, length: int) -> tuple[int, int]:
        """The least and the greatest number of strangers' posts on a page of this length.

        Anything goes where no whole number lies within the shares, as on a page of one post.
        """
        # 0.1 * 30 is a little more than 3, and must not become 4.
        least = math.ceil(self.share_min * length - 1e-9)
        greatest = math.floor(self.share_max * length + 1e-9)
        return (least, greatest) if least <= greatest else (0, length)


@dataclass(frozen=True, slots=True)
class Exploration:
    """How often chance chooses, and among how many.

    Args:
        epsilon: Chance, 0 to 1, that a place's post is drawn, each of the pool alike, instead of
            being the best.
        pool: How many of the best candidates that break the least rules are drawn from; 1 or more.
        chance: What draws.
    """

    epsilon: float
    pool: int
    chance: random.Random


@dataclass(frozen=True, slots=True)
class Placed:
    """One entry of the order, and why it is there.

    Args:
        index: Which candidate.
        placement: Why.
        propensity: How likely this candidate was at this place, given the places before it; 0 to 1.
        pool: The candidates that it might have been, by index, best first, itself included; empty
            where chance had no say.
    """

    index: int
    placement: Placement.ValueType
    propensity: float = 1.0
    pool: tuple[int, ...] = ()


@dataclass(slots=True)
class _Page:
    """A page being filled."""

    places_left: int
    least: int
    greatest: int
    by_author: dict[int, int] = field(default_factory=dict)
    strangers: int = 0

    def barred_kind(self) -> bool | None:
        """Whose posts must not come next: strangers' (True), followed authors' (False), nobody's.

        Followed authors wait when only strangers can still bring the page up to its least share.
        """
        if self.strangers >= self.greatest:
            return True
        if self.least - self.strangers >= self.places_left:
            return False
        return None

    def add(self, item: Item) -> None:
        self.places_left -= 1
        self.by_author[item.author_id] = self.by_author.get(item.author_id, 0) + 1
        self.strangers += item.is_stranger


def rerank(
    items: Sequence[Item], bounds: Bounds, exploration: Exploration | None = None
) -> list[Placed]:
    """The whole feed, as `placing` has it."""
    return list(placing(items, bounds, exploration))


def placing(
    items: Sequence[Item], bounds: Bounds, exploration: Exploration | None = None
) -> Iterator[Placed]:
    """Place by place, every item once. Equal scores stay in the order given; NaN comes last.

    Who needs only the first places need not pay for the others.

    Args:
        items: The candidates.
        bounds: How pages are made up.
        exploration: Of chance; none where the order must follow from the scores alone.
    """
    if exploration is not None and exploration.epsilon <= 0:
        exploration = None
    most = 1 if exploration is None else exploration.pool
    left = sorted(items, key=lambda item: math.inf if math.isnan(item.score) else -item.score)
    strangers_left = sum(item.is_stranger for item in left)
    passed: dict[int, Placement.ValueType] = {}
    above: int | None = None
    while left:
        length = min(bounds.page_size, len(left))
        page = _Page(length, *bounds.strangers(length))
        while page.places_left:
            both_left = 0 < strangers_left < len(left)
            barred = page.barred_kind() if both_left else None
            eligible, faults = _eligible(left, page, above, barred, most)
            drawn = _draw(len(eligible), exploration)
            lifted = _pass_over(left, faults[: eligible[drawn]], faults[eligible[0]], passed)
            pool = () if exploration is None else tuple(left[place].index for place in eligible)
            item = left.pop(eligible[drawn])
            if drawn:
                reason = PLACEMENT_EXPLORATION
            else:
                reason = passed.get(item.index) or (
                    PLACEMENT_DISCOVERY_SHARE if lifted else PLACEMENT_BY_SCORE
                )
            yield Placed(item.index, reason, propensity(drawn, len(eligible), exploration), pool)
            page.add(item)
            strangers_left -= item.is_stranger
            above = item.author_id


def propensity(rank: int, pool: int, exploration: Exploration | None) -> float:
    """How likely the candidate of this rank (0 is the best) is drawn from a pool of this size."""
    if exploration is None:
        return float(rank == 0)
    return exploration.epsilon / pool + (1 - exploration.epsilon) * (rank == 0)


def _draw(pool: int, exploration: Exploration | None) -> int:
    """A rank below `pool`: mostly 0, the best."""
    if exploration is None or exploration.chance.random() >= exploration.epsilon:
        return 0
    return exploration.chance.randrange(pool)


def _eligible(
    left: Sequence[Item], page: _Page, above: int | None, barred: bool | None, most: int
) -> tuple[list[int], list[int]]:
    """Where in `left` the items are of which one comes next, and what each item breaks.

    Those that break the least, best first, `most` at most. What items after the last of them break
    may be left out.
    """
    faults: list[int] = []
    places: list[int] = []
    least = _WRONG_KIND + _TOO_MANY + _IN_A_ROW + 1
    for place, item in enumerate(left):
        fault = 0
        if item.is_stranger is barred:
            fault += _WRONG_KIND
        if page.by_author.get(item.author_id, 0) >= MAX_PER_AUTHOR:
            fault += _TOO_MANY
        if item.author_id == above:
            fault += _IN_A_ROW
        faults.append(fault)
        if fault < least:
            places, least = [place], fault
        elif fault == least and len(places) < most:
            places.append(place)
        if not least and len(places) == most:
            break
    return places, faults


def _pass_over(
    left: Sequence[Item], faults: Sequence[int], least: int, passed: dict[int, Placement.ValueType]
) -> bool:
    """Notes why items had to wait; returns whether any had to for the share of strangers.

    Those before the chosen one that break no more than it does wait by chance, not for a rule.
    """
    lifted = False
    for item, fault in zip(left, faults, strict=False):
        if fault > least:
            author = fault >= _TOO_MANY
            passed.setdefault(
                item.index, PLACEMENT_AUTHOR_SPREAD if author else PLACEMENT_DISCOVERY_SHARE
            )
            lifted = lifted or bool(fault & _WRONG_KIND)
    return lifted
