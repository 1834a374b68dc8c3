"""Writes docs/settings.md: `make docs`. A test holds the table and the code together."""

from pathlib import Path

from pydantic import SecretStr

from mesh.settings import Settings

TARGET = Path(__file__).parent.parent / "docs" / "settings.md"


def render() -> str:
    """The table of all settings, in Markdown."""
    lines = [
        "# Settings",
        "",
        "Environment variables, or lines of a `.env` file. `{data}` stands for `FEED_DATA_DIR`.",
        "Made from `mesh/settings.py` by `make docs`.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "" if default is None or isinstance(default, SecretStr) else f"`{default}`"
        lines.append(f"| `FEED_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render())
