"""Triton's server, unpacked from its wheel into a cache that all checkouts share."""

import asyncio
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import FailedPrecondition
from stack.installing import once, run

_PINS = Path(__file__).parent.parent.parent / "requirements" / "triton.txt"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# What the wheel's binaries were linked against.
_GLIBC = (2, 35)


@dataclass(frozen=True, slots=True)
class Installation:
    """Where an installed Triton has its parts.

    Args:
        root: The folder that holds them.
    """

    root: Path

    @property
    def server(self) -> Path:
        """The program."""
        return self.root / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """For --backend-directory; has the Python backend for this interpreter."""
        return self.root / "pytriton" / "tritonserver" / "backends"

    @property
    def allocator(self) -> Path:
        """jemalloc, which can hand out memory that is all zeros."""
        return self.root / "libjemalloc.so"


async def install(cache: Path) -> Installation:
    """Installs Triton below `cache`, unless it is there.

    Raises:
        FailedPrecondition: It does not run on this machine, or does not install; the detail says
            why.
    """
    _require_platform()
    pins = await asyncio.to_thread(_PINS.read_bytes)
    return Installation(await once(cache, "triton", pins + _PYTHON.encode(), _unpack))


def _require_platform() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise FailedPrecondition(
            "Triton comes for Linux on x86-64 only; this is "
            f"{platform.system()} on {platform.machine()}"
        )
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split(".")[:2])) < _GLIBC:
        needed = ".".join(map(str, _GLIBC))
        raise FailedPrecondition(f"Triton needs glibc {needed} or newer; this is {libc} {version}")
    if not python_library().exists():
        raise FailedPrecondition(
            f"Triton's Python backend needs {python_library()}, which this Python came without; "
            f"install libpython{_PYTHON}, or use a Python that has it"
        )


def python_library() -> Path:
    """Python itself as a shared library, which the Python backend loads."""
    folder, name = sysconfig.get_config_vars("LIBDIR", "INSTSONAME")
    return Path(str(folder)) / str(name)


async def _unpack(folder: Path) -> None:
    """The pinned wheels into the folder, and there everything where Triton looks for it."""
    await run(
        *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps"),
        *("--require-hashes", "--requirements", str(_PINS)),
        *("--python", sys.executable, "--target", str(folder)),
        cwd=folder,
    )
    await asyncio.to_thread(_arrange, folder)


def _arrange(folder: Path) -> None:
    shutil.move(folder / "ray" / "core" / "libjemalloc.so", Installation(folder).allocator)
    for unused in folder.glob("ray*"):
        shutil.rmtree(unused)
    stubs = folder / "pytriton" / "tritonserver" / "python_backend_stubs"
    shutil.copy2(
        stubs / _PYTHON / "triton_python_backend_stub", Installation(folder).backends / "python"
    )
