"""Fixtures shared by all tests live in tests/fixtures, one module a backend."""

pytest_plugins = [
    "tests.fixtures.stack",
    "tests.fixtures.qdrant",
    "tests.fixtures.kafka",
    "tests.fixtures.pinot",
    "tests.fixtures.spans",
    "tests.fixtures.sql",
    "tests.fixtures.valkey",
    "tests.fixtures.vectors",
    "tests.fixtures.world",
]
