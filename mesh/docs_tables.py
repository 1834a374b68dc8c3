"""Writes the generated pages of docs/: `make docs`. A test holds them and the code together."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import SecretStr

from mesh import metrics_table
from mesh.attributes import ATTRIBUTES, SPANS
from mesh.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"


def settings() -> str:
    """The table of all settings, in Markdown."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "" if default is None or isinstance(default, SecretStr) else f"`{default}`"
        rows.append((f"`FEED_{name.upper()}`", shown, str(field.description)))
    return _page(
        "Settings",
        "Environment variables, or lines of a `.env` file. `{data}` stands for `FEED_DATA_DIR`.\n"
        "Made from `mesh/settings.py` by `make docs`.",
        _table(("variable", "default", "meaning"), rows),
    )


def telemetry() -> str:
    """Which spans there are and what they say, in Markdown."""
    return _page(
        "What the traces say",
        "Made from `mesh/attributes.py` by `make docs`. Beside what stands here, spans have the "
        "attributes of OpenTelemetry's semantic conventions for http, rpc, db and messaging, and "
        "their resource has `service.name`, `service.namespace` = feedmesh, `service.version` and "
        "`service.instance.id`.",
        "## Spans",
        _table(
            ("name", "kind", "service", "what it is"),
            [(f"`{s.name}`", s.kind, s.service, s.meaning) for s in SPANS],
        ),
        "## Attributes",
        _table(
            ("attribute", "type", "on", "meaning"),
            [(f"`{a.name}`", a.type, a.where, a.meaning) for a in ATTRIBUTES],
        ),
        _STATUS,
    )


_STATUS = """\
## Status

| span | is an error |
|---|---|
| REST, SERVER | for a response of 500 and above. A client that went away is 499, and none |
| gRPC, CLIENT | for every code but OK; CANCELLED when the caller itself was cancelled |
| gRPC, SERVER | for UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS |
| SQL, Redis | when the statement or command failed, or was cut off |
| send, process | when it raised; each attempt has its own span |
| stage | also when a stand-in took its place: the page went on, the stage did fail |

`error.type` is set on every span that is an error and on no other. Nothing sets the status OK: by \
the specification that is the operator's to say.

## What is not in them

No text, no name, no address of a user, no token. A user is named by a keyed hash, or not at all, \
or by id: `FEED_TRACE_USERS`. In `url.path` a user's id is named the same way, and a feed's cursor \
is left out of `url.query`. SQL has its parameters left out, Redis its keys and values."""

PAGES: dict[Path, Callable[[], str]] = {
    DOCS / "settings.md": settings,
    DOCS / "telemetry.md": telemetry,
    DOCS / "metrics.md": metrics_table.render,
}


def _page(title: str, *parts: str) -> str:
    return "\n\n".join((f"# {title}", *parts)) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head_line, *row_lines = ["| " + " | ".join(line) + " |" for line in (head, *rows)]
    return "\n".join([head_line, "|" + "---|" * len(head), *row_lines])


if __name__ == "__main__":
    for path, render in PAGES.items():
        path.write_text(render())
