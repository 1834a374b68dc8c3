"""What a request waited for, read off its trace."""

from bench.critical_path import backend_calls
from mesh.otlp import Kind, Span
from tests.cli.test_trace_rules import span


def timed(
    number: int, parent: int, start_ms: int, end_ms: int, kind: Kind = "CLIENT", service: str = "a"
) -> Span:
    return span(number, parent, f"call {number}", kind, service, start_ns=start_ms, end_ns=end_ms)


def numbers(*spans: Span) -> list[int]:
    return [int(found.span_id, 16) for found in backend_calls(spans)]


def test_of_calls_side_by_side_the_longest_was_waited_for() -> None:
    root = timed(1, 0, 0, 100, "SERVER")
    assert numbers(root, timed(2, 1, 10, 30), timed(3, 1, 12, 50), timed(4, 1, 60, 90)) == [3, 4]


def test_a_call_that_was_still_running_when_the_next_began_held_nothing_up() -> None:
    root = timed(1, 0, 0, 100, "SERVER")
    assert numbers(root, timed(2, 1, 10, 70), timed(3, 1, 50, 90), timed(4, 1, 20, 40)) == [4, 3]


def test_what_hides_behind_a_hop_is_found_and_a_backends_own_spans_are_not() -> None:
    spans = (
        timed(1, 0, 0, 100, "SERVER"),
        timed(2, 1, 10, 90, "CLIENT"),
        timed(3, 2, 12, 88, "SERVER", "b"),
        timed(4, 3, 20, 40, "CLIENT", "b"),
        timed(5, 4, 22, 38, "SERVER", "vectors"),
        timed(6, 3, 50, 60, "INTERNAL", "b"),
    )
    assert numbers(*spans) == [4]
