"""Numbers for Prometheus. No label names a policy or a key: there may be a million of them."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pefx.http.exchange import Exchange
from pefx.http.service import Service

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
# Names, the engine's fields, and what they are.
GAUGES = (
    ("pefx_sequences_waiting", "waiting", "Sequences that wait for a place in a step."),
    ("pefx_sequences_running", "running", "Sequences that are in steps."),
    ("pefx_seats", "seats", "Sequences that may run at once."),
    ("pefx_kv_pages_used", "pages_used", "KV pages that sequences hold."),
    ("pefx_kv_pages_cached", "pages_cached", "KV pages that are kept for prompts to come."),
    ("pefx_kv_pages", "pages", "KV pages in all."),
)
COUNTERS = (
    ("pefx_steps", "steps", "Steps of the engine."),
    ("pefx_step_seconds", "step_seconds", "Seconds of steps on the device, and of waiting for it."),
    ("pefx_host_seconds", "host_seconds", "Seconds in which the host planned steps and took them in."),
    ("pefx_batch_tokens", "batch_tokens", "Live tokens in steps."),
    ("pefx_batch_rows", "batch_rows", "Rows of steps: batch tokens by these are how full steps are."),
    ("pefx_prompt_tokens", "prompt_tokens", "Tokens of prompts."),
    ("pefx_cached_prompt_tokens", "cached_tokens", "Tokens of prompts that were found in the prefix cache."),
    ("pefx_generated_tokens", "tokens", "Tokens generated."),
    ("pefx_preemptions", "preemptions", "Sequences that gave up their pages to others."),
    ("pefx_audited_answers", "audited", "Answers that were computed a second time."),
    ("pefx_mismatched_answers", "mismatches", "Of these, those that had other bits than at first."),
)


class Metrics:
    """What is counted of exchanges, and the engine's own numbers at the time they are asked for."""

    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        of = self.registry
        self._requests = Counter("pefx_requests", "Requests answered.", ["endpoint", "status"], registry=of)
        self._choices = Counter("pefx_answers", "Answers generated.", ["finish_reason"], registry=of)
        self._adapters = Counter("pefx_adapters", "Where adapters were when asked for.", ["where"], registry=of)
        self._first = Histogram("pefx_first_token_seconds", "Seconds to the first token.", buckets=SECONDS, registry=of)
        self._each = Histogram(
            "pefx_output_token_seconds", "Seconds for each token after the first.", buckets=TOKEN_SECONDS, registry=of
        )
        self._whole = Histogram(
            "pefx_request_seconds", "Seconds of requests.", ["endpoint"], buckets=SECONDS, registry=of
        )
        self.registry.register(EngineNumbers(service))

    def count(self, exchange: Exchange) -> None:
        """One exchange is over."""
        self._requests.labels(exchange.endpoint, str(exchange.status)).inc()
        for answered in exchange.answers:
            self._adapters.labels(answered.where).inc()
            self._first.observe(answered.waited)
            for choice in answered.row.get("choices") or [answered.row]:
                self._choices.labels(choice["finish_reason"]).inc()
                if len(choice["tokens"]) > 1:
                    self._each.observe((answered.seconds - answered.waited) / (len(choice["tokens"]) - 1))
        if exchange.answers:
            self._whole.labels(exchange.endpoint).observe(max(answered.seconds for answered in exchange.answers))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class EngineNumbers(Collector):
    """The engine's numbers as of a moment ago."""

    def __init__(self, service: Service):
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service, state = self._service, self._service.state
        yield GaugeMetricFamily("pefx_answers_in_flight", "Answers that are not complete yet.", service.in_flight)
        yield GaugeMetricFamily("pefx_answers_most", "Answers that may be in flight.", service.queue)
        yield GaugeMetricFamily("pefx_engine_up", "1 while the engine runs.", float(service.alive))
        for name, field, what in GAUGES:
            yield GaugeMetricFamily(name, what, getattr(state, field))
        for name, field, what in COUNTERS:
            yield CounterMetricFamily(name, what, getattr(state, field))
        yield from self._residency()

    def _residency(self) -> Iterator[Metric]:
        counts = self._service.adapters
        if counts is None:
            return
        host = counts.host
        for name, what, value in (
            ("pefx_slot_hits", "Adapters found in a slot.", counts.slot_hits),
            ("pefx_slot_loads", "Adapters put into a slot.", counts.slot_loads),
            ("pefx_slot_evictions", "Adapters that left a slot for another.", counts.slot_evictions),
            ("pefx_host_hits", "Adapters found in host memory.", host.hits),
            ("pefx_host_misses", "Adapters that had to be read.", host.misses + host.shared),
            ("pefx_host_loads", "Reads of adapters.", host.loads),
            ("pefx_host_load_failures", "Reads of adapters that failed.", host.failures),
            ("pefx_host_evictions", "Adapters that left host memory for another.", host.evictions),
            ("pefx_host_loaded_bytes", "Bytes of adapters read.", host.bytes_loaded),
            ("pefx_cold_seconds", "Seconds waited for reads of adapters.", host.wait_seconds),
        ):
            yield CounterMetricFamily(name, what, value)
        yield GaugeMetricFamily("pefx_host_bytes", "Bytes of adapters in host memory.", host.bytes)
        yield GaugeMetricFamily("pefx_host_pinned_bytes", "Of these, those that cannot leave now.", host.pinned_bytes)
