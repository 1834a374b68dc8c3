"""Events to records and back: canonical protobuf JSON, and headers that carry the trace."""

import json
from typing import TypeVar
from uuid import uuid4

from google.protobuf import json_format
from google.protobuf.message import Message

from mesh import telemetry
from mesh.errors import InvalidArgument
from stores.events.port import Event, OutgoingRecord, Record

M = TypeVar("M", bound=Message)


def new_event_id() -> str:
    """A fresh id, 32 hex digits."""
    return uuid4().hex


def encode(event: Event, event_id: str) -> OutgoingRecord:
    """The event as it goes on the wire, with the trace context of whoever calls."""
    fields = json_format.MessageToDict(event.message, preserving_proto_field_name=True)
    if "event_id" in event.message.DESCRIPTOR.fields_by_name:
        fields["event_id"] = event_id
    return OutgoingRecord(
        topic=str(event.topic),
        key=str(event.key),
        value=json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode(),
        headers={**telemetry.inject(), "event_id": event_id},
    )


def decode(record: Record, message_type: type[M]) -> M:
    """The message that the record carries; fields of a newer sender are passed over.

    Raises `InvalidArgument` when the value is not such a message.
    """
    try:
        fields = json.loads(record.value)
        if not isinstance(fields, dict):
            raise InvalidArgument(f"A record of {record.topic} is not a JSON object.")
        return json_format.ParseDict(fields, message_type(), ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"A record of {record.topic} cannot be read: {error}") from error
