"""What the documentation says, held against the code."""

from pathlib import Path

import pytest

from mesh.docs_tables import PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_generated_page_is_current(page: Path) -> None:
    assert page.read_text() == PAGES[page](), "run `make docs`"
