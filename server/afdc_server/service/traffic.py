"""What the API answered: counters and a histogram for Prometheus, with labels of a bounded number only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter, Histogram, disable_created_metrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
REASONS = (
    "requests",
    "tenant_jobs",
    "tenant_tokens",
    "queue",
    "streams",
    "waits",
    "previews",
    "texts",
    "adapter",
    "ending",
)
FAULTS = ("engine", "engine_died", "request_rejected", "storage", "trainer")
REASON_KEY = "afdc.reason"
"""Of an ASGI scope: why the request is refused for now (429 or 503)."""

# A second series for each would say when it began.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client has annotated all but this


class Traffic:
    """Counts of one server. Safe in any thread."""

    def __init__(self) -> None:
        of_route = ["route", "method"]
        self.requests = Counter("afdc_http_requests", "Requests answered", [*of_route, "status"], registry=None)
        self.seconds = Histogram(
            "afdc_http_request_seconds", "Until the answer begins", of_route, registry=None, buckets=BUCKETS_S
        )
        self.refused = Counter("afdc_http_refused", "Requests refused for now", ["reason"], registry=None)
        for reason in (*REASONS, *FAULTS):
            self.refused.labels(reason)

    def note(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """An answer that begins. Clients that ask to wait for a change are counted and not timed."""
        route = str(getattr(scope.get("route"), "path_format", OTHER))
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self.requests.labels(route, method, status).inc()
        if b"wait=" not in scope.get("query_string", b""):
            self.seconds.labels(route, method).observe(seconds)
        if REASON_KEY in scope:
            self.refused.labels(scope[REASON_KEY]).inc()
