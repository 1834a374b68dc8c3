"""Dependencies point one way: gateway, services, workers -> stores -> mesh -> nothing of ours."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICES = {"candidate_svc", "filter_svc", "ranker_svc", "hydrator_svc"}
OURS = SERVICES | {
    *("gateway", "workers", "stores", "mesh", "local", "stack", "training", "cli", "bench", "tests")
}
# Each may import itself and these.
ALLOWED = {
    "mesh": set(),
    "stores": {"mesh"},
    "gateway": {"stores", "mesh"},
    "workers": {"stores", "mesh"},
    **{service: {"stores", "mesh"} for service in SERVICES},
    "cli": {"stores", "mesh", "workers", "local", "stack", "training"},
    "local": OURS - {"tests", "bench", "stack", "training"},
    "stack": OURS - {"tests", "bench", "cli", "training"},
    # It ranks as the ranker does, and orders as the hydrator does.
    "training": OURS - {"tests", "bench", "cli", "gateway"},
}


def imported_packages(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in (ROOT / package).rglob("*.py")
        for name in imported_packages(file) & OURS - ALLOWED[package] - {package}
    }
    assert not wrong


def test_an_adapter_is_imported_only_where_clients_are_built() -> None:
    adapters = {".sql", ".redis", ".edge", ".onnx", ".folder"}
    wrong = set()
    for package in (*SERVICES, "gateway", "workers"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                module = node.module if isinstance(node, ast.ImportFrom) else None
                if module and module.startswith("stores.") and module.endswith(tuple(adapters)):
                    wrong.add(f"{file.relative_to(ROOT)} imports {module}")
    assert not wrong
