"""What the documentation says, held against the code."""

from pathlib import Path

import pytest

from mesh.attributes import ATTRIBUTES
from mesh.docs_tables import PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_generated_page_is_current(page: Path) -> None:
    assert page.read_text() == PAGES[page](), "run `make docs`"


def test_every_attribute_of_the_table_is_said_somewhere() -> None:
    root = Path(__file__).parent.parent
    code = "".join(
        file.read_text()
        for package in (
            "mesh",
            "stores",
            "gateway",
            "workers",
            *(p.name for p in root.glob("*_svc")),
        )
        for file in (root / package).rglob("*.py")
        if file.name != "attributes.py"
    )
    names = [name for row in ATTRIBUTES for name in row.name.split(", ")]
    assert [n for n in names if n.partition("<")[0].rstrip(".") not in code] == []
