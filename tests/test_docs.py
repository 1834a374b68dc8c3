"""What the documentation says, held against the code."""

from mesh.settings_table import TARGET, render


def test_the_settings_table_is_current() -> None:
    assert TARGET.read_text() == render(), "run `make docs`"
