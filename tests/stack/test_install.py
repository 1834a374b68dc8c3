"""Where Triton does not run, that is said before anything is fetched."""

import platform
from pathlib import Path

import pytest

from mesh.errors import FailedPrecondition
from stack.triton.install import install


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("machine", "aarch64", "Linux on x86-64 only; this is .* on aarch64"),
        ("libc_ver", ("glibc", "2.31"), r"needs glibc 2\.35 or newer; this is glibc 2\.31"),
        ("libc_ver", ("", ""), r"needs glibc 2\.35 or newer"),
    ],
)
async def test_a_machine_that_triton_does_not_run_on_is_told_so(
    name: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, name, lambda: value)
    with pytest.raises(FailedPrecondition, match=message):
        await install(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
