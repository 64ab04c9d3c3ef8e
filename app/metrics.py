"""What a process counts for Prometheus: every family of Easel's own, and one function for each thing that is counted.

No label names a tenant, user or run, and every label has few values: names of agents and models that this process was
not told of by `know` are `other`.
"""

import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = ["REGISTRY", "Collector", "CollectorRegistry", "Metric"]

# The time at which a series began would double their number.
disable_created_metrics()

# Each agent may end with each error code, so that an agent more costs about 50 series, a model about 70.
MOST_AGENTS = 16
MOST_MODELS = 8
OTHER = "other"

_QUICK = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SLOW = (0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 900)

RUNS = Counter("easel_runs", "Runs that ended, by agent, status and error code.", ("agent", "status", "code"))
RUN_SECONDS = Histogram("easel_run_seconds", "From a run's start to its end.", ("agent",), buckets=_SLOW)
QUEUE_SECONDS = Histogram(
    "easel_run_queue_seconds",
    "From a run's request to its first start, also where it waited for an earlier run of its conversation.",
    buckets=(0.05, *_SLOW),
)
FIRST_OUTPUT_SECONDS = Histogram(
    "easel_run_first_output_seconds",
    "From a run's request to the first output of the model, the wait in the queue included.",
    buckets=_SLOW,
)
TAKEOVERS = Counter("easel_run_takeovers", "Runs that were started again, as their worker was lost or stopped.")
RUNS_EXECUTING = Gauge("easel_worker_runs", "Runs that this worker executes.")

PROVIDER_CALLS = Counter(
    "easel_provider_calls", "Calls to the provider, by model and outcome: completed, cancelled, or an error code.",
    ("model", "outcome"),
)  # fmt: skip
PROVIDER_SECONDS = Histogram(
    "easel_provider_call_seconds",
    "From a call's request to the end of its response; outcome is completed, cancelled or failed.",
    ("model", "outcome"),
    buckets=_SLOW,
)
PROVIDER_TOKENS = Counter(
    "easel_provider_tokens",
    "Tokens that the provider reported, by model, kind, and the outcome of their response: completed or failed.",
    ("model", "kind", "outcome"),
)

IMAGES_STORED = Counter("easel_images_stored", "Images that are in the storage, by kind.", ("kind",))
IMAGE_FAILURES = Counter(
    "easel_image_failures",
    "Images that a run reported as failed, by error code; of storage_unavailable and ingest_failed most follow later.",
    ("code",),
)
SPOOL_FAILURES = Counter("easel_spool_failures", "Images that neither the storage nor this worker's disk accepted.")

STORAGE_SECONDS = Histogram(
    "easel_storage_seconds",
    "Calls to the storage, the wait for a thread included; outcome is ok or error.",
    ("operation", "outcome"),
    buckets=_QUICK,
)
POOL_WAIT_SECONDS = Histogram(
    "easel_database_pool_wait_seconds",
    "Until a transaction had a connection to the database, new ones included.",
    buckets=(0.001, *_QUICK),
)
POOL_TIMEOUTS = Counter("easel_database_pool_timeouts", "Transactions that found no connection in time.")
RESPONSE_SECONDS = Histogram(
    "easel_http_response_seconds",
    "From a request's head to that of its response; status is 2xx, 4xx, ...",
    ("status",),
    buckets=_QUICK,
)
JOB_FAILURES = Counter("easel_housekeeping_failures", "Periodic work of a worker that failed, by task.", ("task",))

_agents: frozenset[str] = frozenset()
_models: frozenset[str] = frozenset()


def know(agents: Iterable[str], models: Iterable[str] = ()) -> None:
    """The names that labels may have, the first few of each."""
    global _agents, _models  # noqa: PLW0603 - of the process, as its families are
    _agents = frozenset(list(agents)[:MOST_AGENTS])
    _models = frozenset(list(models)[:MOST_MODELS])


def run_started(*, attempt: int, requested_at: datetime, started_at: datetime | None) -> None:
    if attempt > 1:
        TAKEOVERS.inc()
    elif started_at is not None:
        QUEUE_SECONDS.observe(_seconds(requested_at, started_at))


def run_ended(agent: str, status: str, code: str = "") -> None:
    """`code` is that of its error."""
    RUNS.labels(_agent(agent), status, code).inc()


def run_took(agent: str, started_at: datetime, finished_at: datetime) -> None:
    RUN_SECONDS.labels(_agent(agent)).observe(_seconds(started_at, finished_at))


def run_had_output(requested_at: datetime, first_output_at: datetime) -> None:
    FIRST_OUTPUT_SECONDS.observe(_seconds(requested_at, first_output_at))


def provider_call_ended(model: str, outcome: str, seconds: float) -> None:
    """`outcome` is "completed", "cancelled" or an error code."""
    name = _model(model)
    PROVIDER_CALLS.labels(name, outcome).inc()
    PROVIDER_SECONDS.labels(name, outcome if outcome in ("completed", "cancelled") else "failed").observe(seconds)


def tokens_used(model: str, image_model: str | None, tokens: Mapping[str, int], *, completed: bool) -> None:
    """`tokens` are by kind, as a run's usage shows them; those of images are the image model's."""
    outcome = "completed" if completed else "failed"
    for kind, count in tokens.items():
        if count:
            of = image_model if kind.startswith("image_") else model
            PROVIDER_TOKENS.labels(_model(of or model), kind.removesuffix("_tokens"), outcome).inc(count)


@contextmanager
def storage_call(operation: str, *, answer: type[Exception]) -> Generator[None]:
    """An exception of the kind `answer` is no error."""
    began, outcome = time.monotonic(), "error"
    try:
        yield
        outcome = "ok"
    except answer:
        outcome = "ok"
        raise
    finally:
        STORAGE_SECONDS.labels(operation, outcome).observe(time.monotonic() - began)


def response_began(status: int, seconds: float) -> None:
    """A response's head was sent, `seconds` after its request had come."""
    RESPONSE_SECONDS.labels(f"{status // 100}xx").observe(seconds)


class SizedPool(Protocol):
    def checkedout(self) -> int: ...
    def size(self) -> int: ...


def gauge(name: str, text: str, value: float | Mapping[str, float], label: str = "") -> Metric:
    """A family that is read as somebody asks; a mapping has a value for each of the label's."""
    if isinstance(value, Mapping):
        family = GaugeMetricFamily(name, text, labels=[label])
        for of, number in value.items():
            family.add_metric([of], number)
        return family
    return GaugeMetricFamily(name, text, value=value)


def _agent(key: str) -> str:
    return key if key in _agents else OTHER


def _model(name: str) -> str:
    return name if name in _models else OTHER


def _seconds(since: datetime, until: datetime) -> float:
    """The two may be by the clocks of two machines."""
    return max((until - since).total_seconds(), 0.0)
