"""A pytest plugin that writes which port's suite passed on which adapter: `make conformance`.

A suite is tests/stores/test_<role>.py; the adapter is the part of a test's parameters that is named
like one.
"""

import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ADAPTERS = {
    "sqlite": "SQLite",
    "tidb": "TiDB",
    "redis": "Valkey",
    "cluster": "Valkey Cluster",
    "kafka": "Kafka",
    "pinot": "Pinot",
    "edge": "qdrant-edge",
    "qdrant": "Qdrant",
    "dgraph": "Dgraph",
    "feast": "Feast",
    "folder": "folder",
    "s3": "S3 (MinIO)",
    "onnx": "onnxruntime",
}
_TEST = re.compile(r"tests/stores/test_(\w+)\.py::\w+\[(.+)\]")
# Suites of one adapter alone, or of what adapters share.
_NO_PORTS = {"dgraph", "sql_database"}
_TEXT = """\
# Conformance

Every store port has one suite, tests/stores/test_ROLE.py, which runs on each of its adapters.
`make conformance` runs them all on real servers and writes this page. Qdrant and Dgraph, whose
servers no package registry has, are run where FEED_TEST_QDRANT_URL and FEED_TEST_DGRAPH_URL say;
for this page they were built by hand.

| port | adapter | cases passed | failed | skipped |
|---|---|--:|--:|--:|
"""


class Matrix:
    """Counts what each suite's cases came to."""

    def __init__(self, page: Path) -> None:
        self._page = page
        self._outcomes: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = _TEST.match(report.nodeid)
        # A test that was skipped or failed before its call has no call.
        if found is None or (report.when != "call" and report.outcome == "passed"):
            return
        role, parameters = found.groups()
        if role in _NO_PORTS:
            return
        # A graph in Dgraph has its outbox in SQL: the adapter itself comes last.
        if adapters := [each for each in parameters.split("-") if each in ADAPTERS]:
            self._outcomes[role, adapters[-1]][report.outcome] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        order = list(ADAPTERS)
        rows = [
            f"| {role} | {ADAPTERS[adapter]} | {count['passed']} | {count['failed']} "
            f"| {count['skipped']} |\n"
            for (role, adapter), count in sorted(
                self._outcomes.items(), key=lambda item: (item[0][0], order.index(item[0][1]))
            )
        ]
        self._page.write_text(_TEXT + "".join(rows))
        terminalreporter.write_line(_TEXT + "".join(rows))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance", type=Path, metavar="PAGE", help="where the matrix goes")


def pytest_configure(config: pytest.Config) -> None:
    page = config.getoption("--conformance")
    if page is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Matrix(page), "conformance")
