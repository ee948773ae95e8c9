"""Prometheus metrics of one server: what schedulers count, and the requests by address and status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .hub import Hub, Served

_GAUGES = {  # name -> help, value
    "live_texts": ("texts being denoised", lambda served: served.scheduler.live),
    "waiting_texts": ("texts in the queue", lambda served: served.scheduler.waiting),
    "session_bytes": ("memory of the session", lambda served: served.scheduler.session_bytes),
    "weight_bytes": ("memory of the packed weights", lambda served: served.model.info.weight_bytes),
}
_COUNTERS = {  # name -> help; the field of Counts
    "engine_calls": "forward passes, each for all live texts",
    "canvas_steps": "denoise steps of all texts",
    "rows": "rows that were computed",
    "tokens": "tokens of finished texts",
    "prompt_tokens": "given tokens of finished texts",
    "busy_seconds": "seconds in denoise steps",
    "queued_seconds": "seconds that texts waited before their first step",
}


class Metrics:
    """The metrics of a hub; text() is what /metrics answers."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "localdiff_requests", "requests by address and status", ["path", "status"], registry=self._registry
        )
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        served = list(self._hub.models.values())
        for name, (help, value) in _GAUGES.items():
            gauge: Any = GaugeMetricFamily(f"localdiff_{name}", help, labels=["model"])
            for each in served:
                gauge.add_metric([each.name], value(each))  # type: ignore[no-untyped-call]
            yield gauge
        for name, help in _COUNTERS.items():
            yield self._counter(name, help, served)
        texts = _counters("texts", "texts by how they ended", ["model", "reason"])
        for each in served:
            for reason, count in each.scheduler.counts.finished.copy().items():
                texts.add_metric([each.name, reason], count)
        yield texts

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _counter(self, name: str, help: str, served: list[Served]) -> Any:
        counter = _counters(name, help, ["model"])
        for each in served:
            counter.add_metric([each.name], getattr(each.scheduler.counts, name))
        return counter


def _counters(name: str, help: str, labels: list[str]) -> Any:
    return CounterMetricFamily(f"localdiff_{name}", help, labels=labels)


class CountRequests:
    """Counts requests by the address of their route and the status of the answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._requests = metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, sending if scope["type"] == "http" else send)
