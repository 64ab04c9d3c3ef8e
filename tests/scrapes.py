"""What a process exports on its METRICS_PORT, read as Prometheus reads it."""

import subprocess
import sys
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Series:
    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Scrape:
    text: str
    families: list[str]
    series: list[Series]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the series of this name that have these labels; 0 where there is none."""
        return sum(one.value for one in self.series if one.name == name and one.labels.items() >= labels.items())

    def labels(self) -> dict[str, set[str]]:
        """By the name of a series, those of all its series."""
        found: dict[str, set[str]] = {}
        for one in self.series:
            found.setdefault(one.name, set()).update(one.labels)
        return found


def scrape(port: int) -> Scrape:
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    assert answer.status_code == 200, answer.text
    return parse(answer.text)


def parse(text: str) -> Scrape:
    families = list(text_string_to_metric_families(text))
    series = [Series(one.name, one.labels, one.value) for family in families for one in family.samples]
    return Scrape(text, [family.name for family in families], series)


def worst_case() -> Scrape:
    """After everything that can be counted was, by a thousand agents and as many models; in a process of its own."""
    ran = subprocess.run([sys.executable, "-c", WORST_CASE], capture_output=True, text=True, check=True, timeout=60)
    return parse(ran.stdout)


WORST_CASE = """
from datetime import UTC, datetime

from prometheus_client import generate_latest

from app import metrics
from app.error_codes import ErrorCode

# Those that no HTTP status goes with, and what else ends a run.
CODES = [code for code in ErrorCode if code.status is None]
CODES += [ErrorCode.BUDGET_EXCEEDED, ErrorCode.UNPRICED_MODEL, ErrorCode.UNKNOWN_AGENT, ErrorCode.IMAGE_UNREADABLE]
CODES += [ErrorCode.INTERNAL_ERROR]
OF_PROVIDER = ("upstream_", "moderation_", "context_", "previous_")
KINDS = ("input_tokens", "cached_input_tokens", "output_tokens", "image_input_tokens", "image_output_tokens")
at = datetime.now(UTC)
names = [f"name-{n}" for n in range(1000)]
metrics.know(names, names)
for name in names:
    metrics.run_took(name, at, at)
    for status, code in (("completed", ""), ("cancelled", ""), *(("failed", code) for code in CODES)):
        metrics.run_ended(name, status, code)
    for outcome in ("completed", "cancelled", *(code for code in CODES if code.startswith(OF_PROVIDER))):
        metrics.provider_call_ended(name, outcome, 1.0)
    for completed in (True, False):
        metrics.tokens_used(name, name, dict.fromkeys(KINDS, 1), completed=completed)
for status in (200, 300, 400, 500):
    metrics.response_began(status, 0.01)
for operation in ("prepare", "put", "get", "size", "delete", "list"):
    for error in (KeyError, OSError):
        try:
            with metrics.storage_call(operation, answer=KeyError):
                raise error
        except Exception:
            pass
for code in CODES:
    metrics.IMAGE_FAILURES.labels(code).inc()
for kind in ("generated", "upload"):
    metrics.IMAGES_STORED.labels(kind).inc()
for task in range(13):
    metrics.JOB_FAILURES.labels(str(task)).inc()
print(generate_latest().decode())
"""
