"""Applies the definitions, then serves them: `feast apply` and `feast serve` with one import.

Feast takes seconds to be imported, and a server reads the registry when it starts.
"""

import argparse
import os
from pathlib import Path

from feast.cli.cli import cli

import parquet_folders
from views import post_stats, user_author_affinity, user_stats


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", required=True)
    options = parser.parse_args()
    os.chdir(Path(__file__).parent)
    for view in (user_stats, post_stats, user_author_affinity):
        # Feast wants to see the columns of a source before anything was pushed to it.
        parquet_folders.add_columns(view)
    cli(["apply"], standalone_mode=False)
    # By default it starts anew every 1,000 requests, and stands still meanwhile.
    where = ("--host", options.host, "--port", options.port)
    cli(["serve", *where, "--max-requests", "0", "--no-access-log"], standalone_mode=False)


if __name__ == "__main__":
    main()
