"""The table of impressions in Pinot, which reads the event log's topic by itself.

Pinot 0.11 is what `make stack` runs, 1.5 what its image runs; `_STREAM` and
`_segments` are all that differs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

TABLE = "impressions"
# The showing has none. Explicit, because what Pinot makes of a missing value differs by version.
NONE = -1

PinotVersion = Literal["0.11", "1.5"]
VERSIONS: Mapping[str, PinotVersion] = {"0.11": "0.11", "1.5": "1.5"}

_KAFKA = "org.apache.pinot.plugin.stream"
_STREAM: Mapping[PinotVersion, Mapping[str, str]] = {
    "0.11": {
        "stream.kafka.consumer.type": "lowlevel",
        "stream.kafka.consumer.factory.class.name": f"{_KAFKA}.kafka20.KafkaConsumerFactory",
    },
    "1.5": {
        "stream.kafka.consumer.factory.class.name": f"{_KAFKA}.kafka30.KafkaConsumerFactory",
    },
}


def _segments(version: PinotVersion, name: str, replicas: int) -> dict[str, str]:
    """In 0.11 a table names its schema, and says twice how many copies there are."""
    common = {"replication": str(replicas)}
    if version == "0.11":
        return {**common, "schemaName": name, "replicasPerPartition": str(replicas)}
    return common


def schema(name: str = TABLE) -> dict[str, Any]:
    """The columns: the fields of `feed.v1.ImpressionEvent`, by the names they have in JSON."""
    return {
        "schemaName": name,
        "dimensionFieldSpecs": [
            {"name": "event_id", "dataType": "STRING", "defaultNullValue": ""},
            {"name": "user_id", "dataType": "LONG"},
            {"name": "post_id", "dataType": "LONG"},
            {"name": "author_id", "dataType": "LONG", "defaultNullValue": 0},
            {"name": "position", "dataType": "LONG", "defaultNullValue": NONE},
            {"name": "feed_id", "dataType": "STRING", "defaultNullValue": ""},
            {"name": "dwell_ms", "dataType": "LONG", "defaultNullValue": NONE},
        ],
        "dateTimeFieldSpecs": [
            {
                "name": "seen_at_ms",
                "dataType": "LONG",
                "format": "1:MILLISECONDS:EPOCH",
                "granularity": "1:MILLISECONDS",
            }
        ],
    }


def table(
    version: PinotVersion,
    kafka: Sequence[str],
    topic: str,
    partitions: int,
    *,
    name: str = TABLE,
    replicas: int = 1,
) -> dict[str, Any]:
    """The table's configuration.

    Args:
        version: Whose dialect.
        kafka: "host:port" of brokers, as Pinot's servers reach them.
        topic: The topic of impressions, as the brokers call it. A record's key is its user's id.
        partitions: How many the topic has. Pinot then asks one partition about one user.
        name: The table's, and its schema's.
        replicas: Copies of each segment.
    """
    return {
        "tableName": name,
        "tableType": "REALTIME",
        "segmentsConfig": {
            "timeColumnName": "seen_at_ms",
            "retentionTimeUnit": "DAYS",
            "retentionTimeValue": "2",
            **_segments(version, name, replicas),
        },
        "tenants": {},
        "routing": {"segmentPrunerTypes": ["partition", "time"]},
        "tableIndexConfig": {
            "loadMode": "MMAP",
            "sortedColumn": ["user_id"],
            # While a segment is being filled it is not sorted yet.
            "invertedIndexColumns": ["user_id"],
            "noDictionaryColumns": ["event_id", "seen_at_ms"],
            "segmentPartitionConfig": {
                "columnPartitionMap": {
                    # Of the id's decimal digits, as Kafka's clients do it with the key.
                    "user_id": {"functionName": "Murmur", "numPartitions": partitions}
                }
            },
            "streamConfigs": {
                "streamType": "kafka",
                "stream.kafka.topic.name": topic,
                "stream.kafka.broker.list": ",".join(kafka),
                "stream.kafka.decoder.class.name": f"{_KAFKA}.kafka.KafkaJSONMessageDecoder",
                "stream.kafka.consumer.prop.auto.offset.reset": "smallest",
                "stream.kafka.fetch.timeout.millis": "100",
                # A segment is read again from the topic after a restart until it is full, so it
                # must be so long before the topic forgets.
                "realtime.segment.flush.threshold.rows": "400000",
                "realtime.segment.flush.threshold.time": "6h",
                **_STREAM[version],
            },
        },
        "metadata": {},
    }
