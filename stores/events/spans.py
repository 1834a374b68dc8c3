"""The spans of sending events, for every event log."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue

from mesh import telemetry
from stores.events.port import EventLog, OutgoingRecord


@dataclass(frozen=True, slots=True)
class Sending:
    """Records that are being sent.

    Args:
        records: As they go, in the order of those that were given.
    """

    records: list[OutgoingRecord]
    _spans: dict[int, Span] = field(default_factory=dict)

    def locate(self, index: int, where: Mapping[str, str | int]) -> None:
        """Says on the record's span where it is now; a span of several has no such place."""
        if index in self._spans:
            self._spans[index].set_attributes(where)


@contextmanager
def sending(log: EventLog, records: Sequence[OutgoingRecord]) -> Iterator[Sending]:
    """The records within PRODUCER spans, whose context their consumers will continue.

    A span goes below the one that announced its records, whose context they carry; records of one
    topic that one span announced share theirs. What the block calls to send them has no spans: it
    is one call for many traces.
    """
    batches: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        batches[record.topic, record.headers.get("traceparent", "")].append(index)
    sent = Sending(list(records))
    with ExitStack() as spans:
        for (topic, _), indices in batches.items():
            first = records[indices[0]]
            span = spans.enter_context(
                telemetry.span(
                    f"send {topic}",
                    kind=SpanKind.PRODUCER,
                    attributes=_attributes(log, first, len(indices)),
                    context=telemetry.extract(first.headers),
                )
            )
            context = telemetry.inject()
            for index in indices:
                headers = {**records[index].headers, **context}
                sent.records[index] = replace(records[index], headers=headers)
            if len(indices) == 1:
                sent._spans[indices[0]] = span
        spans.enter_context(suppress_instrumentation())
        yield sent


def messaging(log: EventLog, topic: str, operation: str) -> dict[str, AttributeValue]:
    """What the conventions want of every span about events; `operation` is send or process."""
    return {
        "messaging.system": log.system,
        "messaging.destination.name": topic,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        **log.server,
    }


def _attributes(log: EventLog, first: OutgoingRecord, count: int) -> dict[str, AttributeValue]:
    attributes = messaging(log, first.topic, "send")
    if count == 1:
        attributes["messaging.message.id"] = first.headers.get("event_id", "")
    else:
        attributes["messaging.batch.message_count"] = count
    return attributes
