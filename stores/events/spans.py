"""The spans of sending events, for every event log."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from mesh import telemetry
from stores.events.port import OutgoingRecord


@contextmanager
def sending(system: str, records: Sequence[OutgoingRecord]) -> Iterator[list[OutgoingRecord]]:
    """The records within PRODUCER spans, whose context their consumers will continue.

    A span goes below the one that announced its records, whose context they carry; records of one
    topic that one span announced share theirs. What the block calls to send them has no spans: it
    is one call for many traces.

    Args:
        system: The event log, as the conventions name it: redis, kafka.
        records: In the order in which they are returned.
    """
    batches: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        batches[record.topic, record.headers.get("traceparent", "")].append(index)
    sent = list(records)
    with ExitStack() as spans:
        for (topic, _), indices in batches.items():
            first = records[indices[0]]
            spans.enter_context(
                telemetry.span(
                    f"send {topic}",
                    kind=SpanKind.PRODUCER,
                    attributes=_attributes(system, first, len(indices)),
                    context=telemetry.extract(first.headers),
                )
            )
            context = telemetry.inject()
            for index in indices:
                sent[index] = replace(sent[index], headers={**sent[index].headers, **context})
        spans.enter_context(suppress_instrumentation())
        yield sent


def messaging(system: str, topic: str, operation: str) -> dict[str, AttributeValue]:
    """What the conventions want of every span about events; `operation` is send or process."""
    return {
        "messaging.system": system,
        "messaging.destination.name": topic,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }


def _attributes(system: str, first: OutgoingRecord, count: int) -> dict[str, AttributeValue]:
    attributes = messaging(system, first.topic, "send")
    if count == 1:
        attributes["messaging.message.id"] = first.headers.get("event_id", "")
    else:
        attributes["messaging.batch.message_count"] = count
    return attributes
