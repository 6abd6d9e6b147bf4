"""Prometheus metrics of the server."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .engine import Engine
from .generation import Result

PREFIX = "llava_uhd_"
BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
GAUGES = {
    "waiting": "Requests that wait, being prepared or prepared.",
    "running": "Answers being written.",
    "cached_images": "Images whose features are kept.",
    "cache_bytes": "Bytes of image features kept.",
    "cached_prefixes": "Beginnings of conversations, up to the last image, whose keys and values are kept.",
    "prefix_bytes": "Bytes of those keys and values.",
}
COUNTERS = {
    "finished": "Requests answered.",
    "failed": "Requests that could not be answered.",
    "cancelled": "Requests whose client went away.",
    "late": "Requests that were not answered in time.",
    "refused": "Requests refused because too many waited.",
    "generated_tokens": "Tokens of all answers.",
    "cache_hits": "Images whose features were known.",
    "cache_misses": "Images that were encoded.",
    "prefix_hits": "Prompts with images of which only the text after the last image was read.",
    "prefix_misses": "Prompts with images that were read from the beginning.",
}


ATTRIBUTES = {"late": "timed_out", "refused": "rejected"}  # metrics that keep their former names


class _EngineCollector:
    """The engine's own counts, read when they are asked for."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self.engine.stats()
        for name, about in GAUGES.items():
            yield GaugeMetricFamily(PREFIX + name, about, value=getattr(stats, name))
        for name, about in COUNTERS.items():
            yield CounterMetricFamily(PREFIX + name, about, value=getattr(stats, ATTRIBUTES.get(name, name)))


class Metrics:
    """The server's metrics: the engine's, responses by status, and where the time of answers went."""

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        self.responses = Counter(PREFIX + "responses", "Responses by status.", ["status"], registry=self.registry)
        self.seconds = Histogram(
            PREFIX + "seconds", "Seconds of an answer, by part.", ["part"], buckets=BUCKETS, registry=self.registry
        )

    def observe(self, result: Result) -> None:
        for part, seconds in vars(result.timings).items():
            self.seconds.labels(part).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
