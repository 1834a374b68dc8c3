"""What every response passes: the service's name on its trace, headers, and the HTTP metric."""

import time
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from gateway.schemas import Problem
from mesh import metrics, telemetry

SERVICE = "gateway"
# A method that somebody made up must not make up a time series.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Gateway(FastAPI):
    """FastAPI, whose own server span is around everything below; this is around that span."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with telemetry.as_service(SERVICE):
            if scope["type"] != "http":
                await super().__call__(scope, receive, send)
                return
            answer = _Answer(scope, send)
            with metrics.HTTP_SERVER_ACTIVE.labels(*answer.asked).track_inprogress():
                try:
                    await super().__call__(scope, receive, answer.send)
                except Exception as error:
                    # If it was answered it was logged, too; the server would log it again.
                    if not answer.complete:
                        answer.measure(type(error).__qualname__)
                        raise

    def openapi(self) -> dict[str, Any]:
        """The description of the interface, with the form that all errors have."""
        if self.openapi_schema is None:
            schema = super().openapi()
            components = schema["components"]["schemas"]
            described = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            components.update(described.pop("$defs"))
            components["Problem"] = described
        return super().openapi()


class _Answer:
    """One response on its way out; its `send` runs within the server span."""

    def __init__(self, scope: Scope, send: Send) -> None:
        method = scope["method"]
        # The method and the scheme, as metrics name them.
        self.asked = (method if method in _METHODS else "_OTHER", scope["scheme"])
        self.complete = False
        self._scope = scope
        self._send = send
        self._started = time.perf_counter()
        self._status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers.setdefault("Cache-Control", "no-store")
            if context := telemetry.traceresponse():
                headers["traceresponse"] = context
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self.complete = True
            self.measure(str(self._status) if self._status >= 500 else "")
        await self._send(message)

    def measure(self, error_type: str) -> None:
        """Observes how long the answer took; `error_type` is empty when the server did not fail."""
        route = getattr(self._scope.get("route"), "path_format", "")
        labels = metrics.HTTP_SERVER.labels(*self.asked, route, self._status or "", error_type)
        metrics.observe(labels, time.perf_counter() - self._started)
