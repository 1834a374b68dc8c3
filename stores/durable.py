"""What makes files survive a power cut."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's names, durable. Blocks."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
