"""`feedmesh trace` on files. On a running installation: tests/e2e/test_debug_traces.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from typer.testing import CliRunner, Result

from cli.main import app
from mesh import otlp
from tests.fixtures.valkey import free_port


def trace(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["trace", *map(str, arguments)], env={"COLUMNS": None})


@pytest.fixture
def ended() -> list[ResourceSpans]:
    """Two traces of the gateway: a good one, and one that breaks a rule."""
    exporter = InMemorySpanExporter()
    resource = Resource({"service.name": "gateway", "service.namespace": "feedmesh"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")
    with tracer.start_as_current_span("good"), tracer.start_as_current_span("inner"):
        pass
    with tracer.start_as_current_span("bad") as bad:
        bad.set_status(StatusCode.OK)
    return list(encode_spans(exporter.get_finished_spans()).resource_spans)


@pytest.fixture
def file(tmp_path: Path, ended: list[ResourceSpans]) -> Path:
    path = tmp_path / "traces.json"
    path.write_text(json.dumps(otlp.to_json(ended)))
    return path


def ids(ended: list[ResourceSpans]) -> dict[str, str]:
    return {span.name: span.trace_id for span in otlp.read(ended)}


def test_a_file_is_drawn_trace_by_trace(file: Path, ended: list[ResourceSpans]) -> None:
    result = trace("--file", file)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("trace")] == [
        ["trace", ids(ended)["good"]], ["trace", ids(ended)["bad"]],
    ]  # fmt: skip
    assert [line.split()[0] for line in lines if "gateway" in line] == ["good", "└", "bad"]
    assert "\x1b" not in result.stdout


def test_one_trace_of_a_file_can_be_asked_for(file: Path, ended: list[ResourceSpans]) -> None:
    result = trace(ids(ended)["bad"], "--file", file)
    assert (result.exit_code, result.stdout.count("trace ")) == (0, 1)
    missing = trace("ab" * 16, "--file", file)
    assert missing.exit_code == 1
    assert "has no trace abab" in missing.stderr


def test_json_comes_out_as_it_went_in(file: Path, ended: list[ResourceSpans]) -> None:
    result = trace(ids(ended)["good"], "--file", file, "--json")
    assert result.exit_code == 0
    document: dict[str, Any] = json.loads(result.stdout)
    good = [span for span in otlp.read(ended) if span.trace_id == ids(ended)["good"]]
    assert otlp.read(otlp.from_json(document)) == good


def test_check_fails_for_what_breaks_a_rule_and_only_for_that(
    file: Path, ended: list[ResourceSpans]
) -> None:
    assert trace(ids(ended)["good"], "--file", file, "--check").exit_code == 0
    result = trace("--file", file, "--check")
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert f"trace {ids(ended)['bad']}" in line
    assert line.endswith("has the status OK")


def test_a_parent_outside_is_known_when_it_is_named(file: Path, ended: list[ResourceSpans]) -> None:
    inner = next(span for span in otlp.read(ended) if span.name == "inner")
    for each in ended:
        for scope in each.scope_spans:
            del scope.spans[1:]
    file.write_text(json.dumps(otlp.to_json(ended)))
    assert trace("--file", file, "--check").exit_code == 1
    assert trace("--file", file, "--check", "--outside", inner.parent_id).exit_code == 0


def test_lines_of_json_as_collectors_write_them_are_one_file(
    file: Path, ended: list[ResourceSpans]
) -> None:
    """A trace whose spans are in several lines is one trace."""
    lines = []
    for each in ended:
        for scope in each.scope_spans:
            for span in scope.spans:
                alone = ResourceSpans(resource=each.resource)
                alone.scope_spans.add(scope=scope.scope, spans=[span])
                lines.append(json.dumps(otlp.to_json([alone])))
    file.write_text("\n".join(lines) + "\n")
    assert len(lines) == 3
    assert trace("--file", file).stdout.count("trace ") == 2


@pytest.mark.parametrize("text", ["", "no json", "[1]", '{"resourceSpans": 1}', "{}"])
def test_a_file_that_has_no_traces_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    result = trace("--file", path)
    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("arguments", [[], ["ab" * 16]])
def test_a_gateway_that_is_not_there_is_told_in_a_line(arguments: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    result = trace(*arguments, "--url", url)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"cannot ask {url}: ")
    assert len(result.stderr.splitlines()) == 1
