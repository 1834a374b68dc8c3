"""A CLIENT span for each HTTP request to a backend, and its duration as a metric.

By OpenTelemetry's conventions for HTTP. opentelemetry-instrumentation-httpx 0.66b1 leaves the
status of a request that is cancelled unset, and a deadline is a cancellation (docs/decisions/0011).
"""

import time
from collections.abc import Mapping

import httpx
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

from mesh import metrics, telemetry


async def post(
    client: httpx.AsyncClient,
    path: str,
    content: bytes,
    attributes: Mapping[str, AttributeValue],
) -> httpx.Response:
    """Posts JSON; the trace goes along. A status of 400 or above is an error on the span only.

    Args:
        client: Its base URL says whom.
        path: Of low cardinality; it names the span.
        content: The JSON.
        attributes: Further ones of the span.

    Raises:
        httpx.HTTPError: There was no answer.
    """
    headers = {"content-type": "application/json"}
    if not is_instrumentation_enabled():
        return await client.post(path, content=content, headers=headers)
    url = client.base_url.join(path)
    address = url.host
    port = url.port or (443 if url.scheme == "https" else 80)
    status = error_type = ""
    started = time.perf_counter()
    with telemetry.bare_span(
        f"POST {path}",
        kind=SpanKind.CLIENT,
        attributes={
            "http.request.method": "POST",
            "url.full": str(url.copy_with(userinfo=b"")),
            "url.template": path,
            "server.address": address,
            "server.port": port,
            **attributes,
        },
    ) as span:
        try:
            response = await client.post(
                path, content=content, headers={**headers, **telemetry.inject()}
            )
            status = str(response.status_code)
            span.set_attribute("http.response.status_code", response.status_code)
            if response.is_error:
                error_type = status
                span.set_attribute("error.type", status)
                span.set_status(StatusCode.ERROR)
            return response
        except BaseException as error:
            error_type = telemetry.error_type(error)
            telemetry.set_error(span, error)
            raise
        finally:
            duration = metrics.HTTP_CLIENT.labels("POST", address, path, status, error_type)
            metrics.observe(duration, time.perf_counter() - started)
