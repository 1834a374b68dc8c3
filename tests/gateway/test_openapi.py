"""The description at /docs, held against the interface by requests made up from it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from pydantic import SecretStr
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.app import create_app
from mesh.settings import Settings
from stores.connect import Connections
from tests.fixtures.world import World

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 12
# Described from the same code as the real one; only its operations are needed here.
_SETTINGS = Settings(jwt_secret=SecretStr("s" * 32))
DESCRIPTION = create_app(_SETTINGS, Connections(_SETTINGS)).openapi()
SCHEMA = schemathesis.openapi.from_dict(DESCRIPTION)
OPERATIONS = {
    operation.label: operation
    for operation in (each.ok() for each in SCHEMA.get_all_operations() if isinstance(each, Ok))
}


@pytest.fixture(scope="module")
async def base_url(world: World) -> AsyncIterator[str]:
    """The world's gateway behind a real HTTP server."""
    config = uvicorn.Config(world.app, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server._serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


# What takes no input cannot be asked wrongly.
REQUESTS = [
    (label, mode)
    for label, operation in OPERATIONS.items()
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE or operation.body or list(operation.iter_parameters())
]


@pytest.mark.parametrize(("label", "mode"), REQUESTS)
async def test_made_up_requests_get_only_described_answers(
    world: World, base_url: str, label: str, mode: GenerationMode
) -> None:
    person = await world.sign_up("fuzz")

    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Case[Any]) -> None:
        answer = case.call(base_url=base_url, headers=person.headers, timeout=20)
        case.validate_response(answer, checks=CHECKS)

    # The requests block, and the world needs its loop to answer them.
    await asyncio.to_thread(check)


def test_every_operation_describes_its_errors_as_problem_documents() -> None:
    for path, operations in DESCRIPTION["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if status >= "400" and path != "/readyz":
                    assert list(response["content"]) == ["application/problem+json"], (
                        method,
                        path,
                    )


def test_every_operation_but_the_public_ones_asks_for_a_token() -> None:
    public = {
        f"{method.upper()} {path}"
        for path, operations in DESCRIPTION["paths"].items()
        for method, operation in operations.items()
        if "security" not in operation
    }
    assert public == {
        "POST /auth/token",
        "POST /user",
        "GET /media/{key}",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    }


def schemas() -> dict[str, Any]:
    described: dict[str, Any] = DESCRIPTION["components"]["schemas"]
    return described


def test_ids_are_described_as_strings() -> None:
    post_id = schemas()["Post"]["properties"]["post_id"]
    assert post_id["type"] == "string"
    assert "HTTPValidationError" not in schemas()
