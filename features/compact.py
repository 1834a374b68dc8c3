"""Makes one Parquet file of a view's many, which come of pushes; prints the rows of each view."""

import parquet_folders
from views import post_stats, user_author_affinity, user_stats


def main() -> None:
    """All views, one after another."""
    for view in (user_stats, post_stats, user_author_affinity):
        print(f"{view.name}: {parquet_folders.compact(view):,} rows")


if __name__ == "__main__":
    main()
