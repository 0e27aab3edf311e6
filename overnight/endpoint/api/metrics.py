"""What the server tells Prometheus."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from overnight.endpoint.storage.lines import ResultLine
from overnight.endpoint.storage.records import STATUSES
from overnight.endpoint.storage.store import Store
from overnight.endpoint.work.backlog import Backlog
from overnight.endpoint.work.gate import Gate, Report

_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
_TOKENS: Final = {"input_tokens": "input", "output_tokens": "output", "cached_tokens": "cached_input"}


class Metrics:
    """Counters since the start of the process, and what holds right now."""

    def __init__(self, store: Store, gate: Gate, backlog: Backlog) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # it has no annotations
        self._registry = registry = CollectorRegistry()
        lines = Counter("overnight_endpoint_lines", "Finished lines.", ["result"], registry=registry)
        self._lines = {True: lines.labels("completed"), False: lines.labels("failed")}
        tokens = Counter("overnight_endpoint_tokens", "Tokens of completed lines.", ["kind"], registry=registry)
        self._tokens = {name: tokens.labels(kind) for name, kind in _TOKENS.items()}
        attempts = Histogram(
            "overnight_endpoint_upstream_seconds", "Attempts.", ["outcome"], buckets=_SECONDS, registry=registry
        )
        self._attempts = {kind: attempts.labels(kind) for kind in ("answered", "refused", "failed")}
        for name, help_text, read in (
            ("in_flight_lines", "Lines that hold a slot.", lambda: gate.running),
            ("concurrency_limit", "Lines that may hold a slot.", lambda: gate.limit),
            ("queued_lines", "Unfinished lines of the batches in progress.", lambda: backlog.lines),
            ("paused_seconds", "Seconds until the upstream is asked again.", lambda: gate.paused_seconds),
        ):
            Gauge(f"overnight_endpoint_{name}", help_text, registry=registry).set_function(read)
        registry.register(_Batches(store))

    def attempt(self, report: Report) -> None:
        """Count an attempt."""
        self._attempts[report.kind].observe(report.seconds)

    def line(self, result: ResultLine) -> None:
        """Count a finished line."""
        self._lines[result.succeeded].inc()
        for name, counter in self._tokens.items():
            counter.inc(getattr(result.usage, name))

    def text(self) -> bytes:
        """Return Prometheus' text format."""
        return generate_latest(self._registry)


class _Batches(Collector):
    """Batches by status, from the database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("overnight_endpoint_batches", "Batches on disk.", labels=["status"])
        found = self._store.counts_by_status()
        for status in STATUSES:
            family.add_metric([status], found.get(status, 0))
        yield family
