"""kubectl, for what has to be done to a cluster."""

import asyncio
import json
from pathlib import Path
from typing import Any

from mesh.errors import Unavailable

_LAST_LINES = 8


class Kubectl:
    """Runs kubectl on one cluster.

    Args:
        program: kubectl itself.
        kubeconfig: Whose cluster, and in whose name.
        namespace: Where objects are sought when nothing else is said.
    """

    def __init__(self, program: Path, kubeconfig: Path, namespace: str = "default") -> None:
        self._command = (
            *(str(program), "--kubeconfig", str(kubeconfig)),
            *("--namespace", namespace, "--request-timeout", "60s"),
        )

    async def __call__(self, *arguments: str, given: str = "", within_s: float = 120.0) -> str:
        """What it prints.

        Args:
            arguments: Of kubectl.
            given: Its standard input.
            within_s: After so many seconds it is killed.

        Raises:
            Unavailable: It fails; the detail has the end of its complaints.
        """
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(within_s):
                printed, complaints = await process.communicate(given.encode())
        except TimeoutError:
            raise Unavailable(f"kubectl {' '.join(arguments)} took over {within_s} s") from None
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            last = complaints.decode(errors="replace").splitlines()[-_LAST_LINES:]
            raise Unavailable(f"kubectl {' '.join(arguments)} failed: {' / '.join(last)}")
        return printed.decode()

    async def get(self, *arguments: str) -> dict[str, Any]:
        """What `kubectl get` finds. Raises Unavailable as `__call__` does."""
        found: dict[str, Any] = json.loads(await self("get", "--output", "json", *arguments))
        return found
