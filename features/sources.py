"""Where the views' values come from: pushes, which are kept as Parquet below FEED_FEAST_DATA.

A push has whole rows, because Feast takes no others and drops rows that are older than what it has.
"""

import os
from pathlib import Path

from feast import FileSource, PushSource

_OFFLINE = Path(os.environ["FEED_FEAST_DATA"]) / "offline"


def _pushed(view: str) -> PushSource:
    offline = FileSource(
        name=f"{view}_offline", path=str(_OFFLINE / view), timestamp_field="event_timestamp"
    )
    return PushSource(name=f"{view}_push", batch_source=offline)


user_stats = _pushed("user_stats")
post_stats = _pushed("post_stats")
user_author_affinity = _pushed("user_author_affinity")
