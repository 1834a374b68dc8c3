"""Post features of the last moments, in the ranker's memory.

Readers who come at the same time are offered many of the same posts, and a post's vector is most of
what is read for a feed.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from stores.features.port import PostFeatures

# Posts kept; with their vectors some 20 MB.
CAPACITY = 10_000


class RecentPosts:
    """The last looked-up features of a post, for some seconds.

    A post without features is not kept: it is about to get some.

    Args:
        keep_s: Seconds; 0 for not at all.
        capacity: Posts that are kept; of more, those that were asked for longest ago are given up.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        keep_s: float,
        capacity: int = CAPACITY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep_s = keep_s
        self._capacity = capacity
        self._clock = clock
        self._kept: OrderedDict[int, tuple[float, PostFeatures]] = OrderedDict()

    def of(self, post_ids: Iterable[int]) -> dict[int, PostFeatures]:
        """Those that are known and young enough."""
        youngest_too_old = self._clock() - self._keep_s
        found: dict[int, PostFeatures] = {}
        for post_id in post_ids:
            entry = self._kept.get(post_id)
            if entry is not None and entry[0] > youngest_too_old:
                found[post_id] = entry[1]
                self._kept.move_to_end(post_id)
        return found

    def keep(self, post_ids: Sequence[int], posts: Sequence[PostFeatures | None]) -> None:
        """What was just read, in the order of the ids."""
        if not self._keep_s:
            return
        now = self._clock()
        for post_id, post in zip(post_ids, posts, strict=True):
            if post is not None:
                self._kept[post_id] = now, post
                self._kept.move_to_end(post_id)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
