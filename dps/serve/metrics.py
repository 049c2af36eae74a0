"""What ``/metrics`` says, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dps.run.service import Service
from feature_store.records import Question

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
_KS = (1, 2, 4, 8, 16, 32, 64, 128)


class _Engine(Collector):
    """What is asked of the service when somebody looks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Any]:
        """Yield the numbers of this moment."""
        service = self._service
        gauges = {
            "dps_rows": (service.engine.rows, "Chains that can run at a time."),
            "dps_questions_waiting": (service.num_waiting, "Questions that wait for rows."),
            "dps_questions_running": (service.num_open, "Questions that are being sampled."),
        }
        for name, (value, words) in gauges.items():
            yield GaugeMetricFamily(name, words, value=value)
        counts = service.account.counts
        words = "Tokens that were sampled, rejected and cancelled ones included."
        yield CounterMetricFamily("dps_generated_tokens", words, value=counts["num_generated_tokens"])
        yield CounterMetricFamily("dps_decode_seconds", "Seconds of decoding.", value=counts["decode_s"])


class Metrics:
    """Counters of one server."""

    def __init__(self, service: Service) -> None:
        """Begin at 0."""
        self._registry = CollectorRegistry()
        self._registry.register(_Engine(service))
        made: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("dps_requests", "Requests that were answered.", ["path", "status"], **made)
        self._seconds = Histogram("dps_request_seconds", "Seconds until the answer.", buckets=_SECONDS, **made)
        self._k = Histogram("dps_trajectories", "Trajectories of a question.", buckets=_KS, **made)
        self._tokens = Counter("dps_answer_tokens", "Tokens of complete questions.", ["kind"], **made)

    def request(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, status).inc()

    def answered(self, records: Sequence[Question], usage: dict[str, int], seconds: float) -> None:
        """Count an answer."""
        self._seconds.observe(seconds)
        for record in records:
            self._k.observe(record.k)
        self._tokens.labels("prompt").inc(usage["prompt_tokens"])
        self._tokens.labels("returned").inc(usage["completion_tokens"])
        self._tokens.labels("generated").inc(sum(record.num_sampled_tokens for record in records))

    def text(self) -> bytes:
        """Return everything in Prometheus's format."""
        return generate_latest(self._registry)
