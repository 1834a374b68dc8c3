"""Candidates as columns or as one message each: `python -m bench.candidates_encoding`.

Columns are feed.v1.Candidates. Their rival is described at run time: a message that repeats a
message of one candidate, with the same four fields.
"""

import time
from collections.abc import Callable
from typing import Any

from feed.v1.common_pb2 import CANDIDATE_SOURCE_SOCIAL, Candidates
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from rich.console import Console
from rich.table import Table

COUNT = 200
ROUNDS = 200
ROWS = [(1 << 60 | n, 1 << 59 | n, CANDIDATE_SOURCE_SOCIAL, 1 / (1 + n)) for n in range(COUNT)]


def message_per_candidate() -> Any:
    """The class of a message with `repeated Candidate candidates = 1`."""
    file = FileDescriptorProto(name="rival.proto", package="rival", syntax="proto3")
    candidate = file.message_type.add(name="Candidate")
    for number, (name, kind) in enumerate(
        [
            ("post_id", FieldDescriptorProto.TYPE_FIXED64),
            ("author_id", FieldDescriptorProto.TYPE_FIXED64),
            ("source", FieldDescriptorProto.TYPE_INT32),
            ("retrieval_score", FieldDescriptorProto.TYPE_FLOAT),
        ],
        start=1,
    ):
        candidate.field.add(
            name=name, number=number, type=kind, label=FieldDescriptorProto.LABEL_OPTIONAL
        )
    file.message_type.add(name="Candidates").field.add(
        name="candidates",
        number=1,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        type_name=".rival.Candidate",
        label=FieldDescriptorProto.LABEL_REPEATED,
    )
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("rival.Candidates"))


Rival = message_per_candidate()


def build_columns() -> Candidates:
    """The rows as columns."""
    post_ids, author_ids, sources, scores = zip(*ROWS, strict=True)
    return Candidates(
        post_ids=post_ids, author_ids=author_ids, sources=sources, retrieval_scores=scores
    )


def read_columns(message: Candidates) -> list[tuple[int, int, int, float]]:
    """The columns as rows."""
    return list(
        zip(
            message.post_ids,
            message.author_ids,
            message.sources,
            message.retrieval_scores,
            strict=True,
        )
    )


def build_messages() -> Any:
    """The rows as messages."""
    message = Rival()
    for post_id, author_id, source, score in ROWS:
        message.candidates.add(
            post_id=post_id, author_id=author_id, source=source, retrieval_score=score
        )
    return message


def read_messages(message: Any) -> list[tuple[int, int, int, float]]:
    """The messages as rows."""
    return [
        (each.post_id, each.author_id, each.source, each.retrieval_score)
        for each in message.candidates
    ]


def microseconds(work: Callable[[], object]) -> float:
    """The median of many runs."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return sorted(times)[ROUNDS // 2] * 1e6


def main() -> None:
    """Prints both, and their ratio."""
    columns, messages = build_columns(), build_messages()
    packed, parts = columns.SerializeToString(), messages.SerializeToString()
    rows: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("build", build_columns, build_messages),
        ("serialise", columns.SerializeToString, messages.SerializeToString),
        ("parse", lambda: Candidates.FromString(packed), lambda: Rival.FromString(parts)),
        ("read", lambda: read_columns(columns), lambda: read_messages(messages)),
    ]
    table = Table(title=f"{COUNT} candidates, median of {ROUNDS}")
    table.add_column("step")
    for heading in ("columns", "messages", "ratio"):
        table.add_column(heading, justify="right")
    sums = [0.0, 0.0]
    for step, *both in rows:
        times = [microseconds(work) for work in both]
        sums = [total + spent for total, spent in zip(sums, times, strict=True)]
        table.add_row(step, *(f"{spent:.1f} us" for spent in times), f"{times[1] / times[0]:.1f}x")
    table.add_row("all", *(f"{total:.1f} us" for total in sums), f"{sums[1] / sums[0]:.1f}x")
    ratio = len(parts) / len(packed)
    table.add_row("size", f"{len(packed)} B", f"{len(parts)} B", f"{ratio:.1f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
