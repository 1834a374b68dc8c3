"""What `make k8s-test` says at its end."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class Report:
    """Filled by the tests.

    Attributes:
        pods: How many the mesh has in the end.
        restarts: How often their containers were started again, all together.
        ready_s: Seconds from a container's start to its pod being ready, by service.
        checks: What was seen, a line each.
        asked: How many requests there were while something was updated.
        failed: How many of them were not answered with a page.
    """

    pods: int = 0
    restarts: int = 0
    ready_s: Mapping[str, Sequence[float]] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    asked: int = 0
    failed: int = 0

    def print(self, results: Mapping[str, int]) -> None:
        """Writes it to the terminal, with how many tests passed and failed."""
        console = Console(highlight=False, width=110)
        table = Table("service", "pods", "seconds from start to ready: median", "most")
        for service, seconds in sorted(self.ready_s.items()):
            table.add_row(
                service,
                str(len(seconds)),
                f"{statistics.median(seconds):.0f}",
                f"{max(seconds):.0f}",
            )
        console.print()
        console.print(table)
        for line in self.checks:
            console.print(f"- {line}")
        failed = results.get("failed", 0) + results.get("error", 0)
        console.print(
            f"pods {self.pods}, restarts {self.restarts}, "
            f"checks passed {results.get('passed', 0)}, failed {failed}, "
            f"requests failed during rolling updates {self.failed} of {self.asked}"
        )
