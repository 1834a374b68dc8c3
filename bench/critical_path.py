"""What a request waited for: the backend calls on the critical path of its trace."""

from collections import defaultdict
from collections.abc import Sequence

from mesh.otlp import Span

# Services that trace themselves and are none of the mesh's.
_BACKENDS = {"vectors", "triton"}


def backend_calls(spans: Sequence[Span]) -> list[Span]:
    """The calls of backends that the request waited for, in the order of their start.

    Going back from the end of a span, the child that ended last is what it waited for; before that
    child began, the one that had ended last by then; and so on, within each of them alike. A call
    of a backend is a CLIENT span that only spans of the backend's own lie below.

    Args:
        spans: One whole trace with one root.
    """
    children: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        children[span.parent_id].append(span)
    found: list[Span] = []

    def go_back(span: Span, until_ns: int) -> None:
        below = children[span.span_id]
        if span.kind == "CLIENT" and all(child.service in _BACKENDS for child in below):
            found.append(span)
            return
        for child in sorted(below, key=lambda child: child.end_ns, reverse=True):
            if child.start_ns < until_ns and child.end_ns <= until_ns:
                go_back(child, child.end_ns)
                until_ns = child.start_ns

    known = {span.span_id for span in spans}
    [root] = [span for span in spans if span.parent_id not in known]
    go_back(root, root.end_ns)
    return sorted(found, key=lambda span: span.start_ns)
