"""The feature pusher: carries what changed in the feature cache on to the feature server.

It is apart from the workers that write to the cache, so that a feature server that is away holds up
nothing but itself: what it misses waits in a queue, and is pushed when it is back.
"""

import asyncio

from mesh import metrics
from mesh.errors import Unavailable
from stores.features.port import FeaturePusher
from stores.leases.port import Leases
from workers.leased import LeasedLoop

LEASE = "feature_push"


class FeaturePush:
    """Pushes while it holds the lease: one process does it at a time.

    Args:
        pusher: Knows what changed, and where to.
        leases: Decides between processes.
        lease_s: Seconds for which the lease is taken, and that a push may take in all.
    """

    def __init__(self, pusher: FeaturePusher, leases: Leases, lease_s: float = 30.0) -> None:
        self._pusher = pusher
        self._loop = LeasedLoop(
            LEASE, leases, lease_s, self._push, 1, lambda: metrics.FEATURES_UNPUSHED.set(0)
        )

    async def run(self) -> None:
        """Runs until cancelled."""
        await self._loop.run()

    async def _push(self) -> int:
        """Raises `Unavailable` when the lease ends before the feature server has answered."""
        try:
            async with asyncio.timeout_at(self._loop.held_until):
                return await self._pusher.push()
        except TimeoutError:
            raise Unavailable("the feature server did not answer in time") from None
