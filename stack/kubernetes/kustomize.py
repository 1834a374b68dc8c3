"""`python -m stack.kubernetes.kustomize`: installs kustomize where nothing builds `k8s/`."""

import asyncio
import shutil
import sys

from mesh.errors import FeedError
from mesh.settings import Settings
from stack import golang
from stack.place import Place

_PACKAGE = "sigs.k8s.io/kustomize/kustomize/v5"
_VERSION = "v5.8.3"


def main() -> None:
    """Installs it into the cache, unless the machine has it or kubectl; may take a minute."""
    if shutil.which("kustomize") or shutil.which("kubectl"):
        return
    try:
        asyncio.run(golang.installed(Place.of(Settings()), _PACKAGE, _VERSION))
    except FeedError as error:
        sys.exit(f"kustomize cannot be had: {error}")


if __name__ == "__main__":
    main()
