"""Brings the offline values to the online store: what Feast's Redis lost, say.

Only newer values than those that are there are written, so it may run while values are pushed.
"""

import argparse
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from feast import FeatureStore


def main() -> None:
    """All views, for the time that is asked for."""
    parser = argparse.ArgumentParser(prog="materialize")
    parser.add_argument("--days", type=float, default=60, help="how far back (60)")
    options = parser.parse_args()
    os.chdir(Path(__file__).parent)
    now = datetime.now(UTC)
    FeatureStore(".").materialize(now - timedelta(days=options.days), now)


if __name__ == "__main__":
    main()
