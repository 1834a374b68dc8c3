"""`python -m stack.kubernetes.kustomize`: installs kustomize where nothing builds `k8s/`."""

import asyncio
import shutil
import sys
from pathlib import Path

from mesh.errors import FeedError
from mesh.settings import Settings
from stack import golang
from stack.place import Place

_PACKAGE = "sigs.k8s.io/kustomize/kustomize/v5"
_VERSION = "v5.8.3"


def command(cache: Path) -> list[str] | None:
    """What builds a folder: the machine's own, or what was installed; None for neither."""
    for found in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(found[0]):
            return found
    return next(([str(each), "build"] for each in cache.glob("kustomize-*/kustomize")), None)


def main() -> None:
    """Installs it into the cache, unless there is one; may take a minute."""
    place = Place.of(Settings())
    if command(place.cache) is not None:
        return
    try:
        asyncio.run(golang.installed(place, _PACKAGE, _VERSION))
    except FeedError as error:
        sys.exit(f"kustomize cannot be had: {error}")


if __name__ == "__main__":
    main()
