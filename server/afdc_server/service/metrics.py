"""Prometheus metrics, read from the database, the engine and the API's counters when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from afdc.errors import AfdcError
from afdc.wire.jobs import JOB_STATUSES
from afdc_server.db.schema import datasets, service_jobs
from afdc_server.service.services import Services


class _Collector(Collector):
    """One scrape."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """Families of this moment. What cannot be read is left out: a scrape does not fail with the database."""
        with suppress(AfdcError):
            yield from self._jobs()
        with suppress(AfdcError):
            yield from self._engine()
        yield GaugeMetricFamily("afdc_event_streams", "Open event streams", self._services.hub.watchers)
        yield GaugeMetricFamily("afdc_jobs_under_way", "Jobs in this process", self._services.runner.running)

    def _jobs(self) -> Iterator[Metric]:
        count = select(service_jobs.c.status, func.count()).group_by(service_jobs.c.status)
        with self._services.db.read() as connection:
            found = {row[0]: row[1] for row in connection.execute(count)}
            rows = connection.execute(select(func.coalesce(func.sum(datasets.c.rows), 0))).scalar_one()
            oldest = connection.execute(
                select(func.min(service_jobs.c.created_at)).where(service_jobs.c.status == "queued")
            ).scalar()
        jobs = GaugeMetricFamily("afdc_jobs", "Jobs by status", labels=["status"])
        for status in JOB_STATUSES:
            jobs.add_metric([status], found.get(status, 0))
        yield jobs
        yield GaugeMetricFamily("afdc_dataset_rows", "Rows of all data sets", rows)
        yield GaugeMetricFamily("afdc_oldest_queued_timestamp_seconds", "When the oldest waiting job came", oldest or 0)

    def _engine(self) -> Iterator[Metric]:
        usage = self._services.engine.host.engine.usage()
        tokens = CounterMetricFamily("afdc_engine_tokens", "Tokens through the engine", labels=["kind"])
        tokens.add_metric(["prompt"], usage.prompt_tokens)
        tokens.add_metric(["cached"], usage.cached_tokens)
        tokens.add_metric(["completion"], usage.completion_tokens)
        yield tokens
        yield CounterMetricFamily("afdc_engine_busy_seconds", "Seconds with requests", usage.busy_seconds)
        yield CounterMetricFamily("afdc_engine_restarts", "Restarts of the engine's process", usage.restarts)
        entries = self._services.engine.pool.entries().values()
        yield GaugeMetricFamily("afdc_adapters_loaded", "Adapters in the engine", sum(one.loaded for one in entries))


def collect(services: Services) -> CollectorRegistry:
    """A registry for one scrape."""
    registry = CollectorRegistry()
    traffic = services.traffic
    for collector in (_Collector(services), traffic.requests, traffic.seconds, traffic.refused):
        registry.register(collector)
    return registry
