"""What `/metrics` says: every name that is promised, in a form that Prometheus reads, and no more series with time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from wsgiref.util import setup_testing_defaults

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.support.index import BAD_UTF8
from tombsync import __version__
from tombsync.metrics import Metrics
from tombsync.plan import State


class Sources:
    """An agent with two peers and two channels, as a scrape asks it; `steps` lets everything grow that can."""

    def __init__(self, steps: int = 1) -> None:
        self.steps = steps

    def tombstones(self) -> int:
        return 3 * self.steps

    def segments(self) -> Iterable[tuple[str, str, int, int]]:
        yield "desertbus", "source", 100 * self.steps, 2 * self.steps
        yield "desertbus", "chat", 60, 0

    def deliveries(self) -> Iterable[tuple[str, State, int]]:
        for state in State:
            yield "node-b", state, int(state) * self.steps

    def oldest_unconfirmed_s(self) -> Iterable[tuple[str, float]]:
        yield "node-b", 1.5 * self.steps
        yield "node-c", 0.0

    def canary_ages_s(self) -> Iterable[tuple[str, float]]:
        yield "node-b", 12.5
        yield "node-c", 3600.0

    def inbox_waiting(self) -> Iterable[tuple[str, int]]:
        yield "node-b", 3

    def peers_up(self) -> Iterable[tuple[str, bool]]:
        yield "node-b", True
        yield "node-c", False

    def watches(self) -> int:
        return 7 * self.steps

    def rescans_completed(self) -> Iterable[tuple[str, float]]:
        yield "interval", 1_573_613_000.0 + self.steps
        yield "full", 1_573_600_000.0

    def root_believed(self) -> bool:
        return True

    def beat_ages_s(self) -> dict[str, float]:
        return {"intake": 0.1 * self.steps, "push-node-b": 0.2}

    def coverage_s(self) -> Iterable[tuple[str, str, str, float]]:
        yield "desertbus", "source", "covered", 3590.5 * self.steps
        yield "desertbus", "source", "hole", 9.5

    def journal_dropped(self) -> int:
        return self.steps


def scrape(metrics: Metrics) -> str:
    """What a GET of /metrics answers."""
    environ: dict[str, object] = {"PATH_INFO": "/metrics"}
    setup_testing_defaults(environ)
    statuses: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], error: object = None) -> object:
        statuses.append(status)
        return None

    body = b"".join(metrics.wsgi_app(environ, start_response))
    assert statuses == ["200 OK"]
    return body.decode()


def families(metrics: Metrics) -> dict[str, Metric]:
    """Every metric of ours, as Prometheus' own client reads the text."""
    found = {family.name: family for family in text_string_to_metric_families(scrape(metrics))}
    return {name: family for name, family in found.items() if name.startswith("tombsync_")}


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Name and labels -> value."""
    found = [sample for family in families(metrics).values() for sample in family.samples]
    result = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}
    assert len(result) == len(found), "a series came twice"
    return result


def tell(metrics: Metrics, times: int = 1) -> None:
    """What the workers tell, each with every label that it has."""
    for _ in range(times):
        for source in ("watch", "rescan", "inbox", "command", "takedown"):
            metrics.hide_seconds.labels(source).observe(0.0003)
        metrics.push_seconds.labels("node-b").observe(0.02)
        metrics.tell_intervals(300, 86400)
        for kind in ("interval", "full", "settle"):
            metrics.rescan_seconds.labels(kind).observe(2.0)
        metrics.push_failures.labels("node-b", "timeout").inc()
        metrics.missed_by_watch.inc()
        metrics.watch_overflows.inc()
        metrics.watch_errors.inc()
        metrics.rejected.labels("watch", "unsafe-name").inc()
        metrics.restored.inc()
        metrics.data_returned.inc()
        metrics.twins_of_hidden[True].inc()
        metrics.index_retries.inc()


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.ask(Sources())
    tell(metrics)
    return metrics


# Name (of a counter without `_total`, as the parser gives it), kind and labels.
PROMISED = {
    "hide_seconds": ("histogram", {"source"}),
    "push_seconds": ("histogram", {"peer"}),
    "tombstones": ("gauge", set()),
    "segments": ("gauge", {"channel", "quality", "state"}),
    "deliveries": ("gauge", {"peer", "state"}),
    "oldest_unconfirmed_seconds": ("gauge", {"peer"}),
    "peer_up": ("gauge", {"peer"}),
    "canary_age_seconds": ("gauge", {"peer"}),
    "inbox_waiting": ("gauge", {"peer"}),
    "coverage_seconds": ("gauge", {"channel", "quality", "state"}),
    "push_failures": ("counter", {"peer", "reason"}),
    "missed_by_watch": ("counter", set()),
    "watch_overflows": ("counter", set()),
    "watches": ("gauge", set()),
    "watch_errors": ("counter", set()),
    "rescan_seconds": ("histogram", {"kind"}),
    "rescan_interval_seconds": ("gauge", {"kind"}),
    "rescan_last_completed_timestamp_seconds": ("gauge", {"kind"}),
    "rejected": ("counter", {"source", "reason"}),
    "restored": ("counter", set()),
    "data_returned": ("counter", set()),
    "twins_of_hidden": ("counter", {"sticky"}),
    "worker_beat_age_seconds": ("gauge", {"worker"}),
    "build_info": ("gauge", {"version"}),
}


@pytest.mark.parametrize("name", PROMISED)
def test_a_promised_metric_is_there(name: str, metrics: Metrics) -> None:
    kind, labels = PROMISED[name]
    family = families(metrics)[f"tombsync_{name}"]
    assert family.type == kind
    assert family.documentation
    assert family.samples
    for sample in family.samples:
        assert sample.name.startswith(f"tombsync_{name}")
        assert set(sample.labels) - {"le"} == labels
        assert not math.isnan(sample.value)
    if kind == "counter":
        assert {sample.name for sample in family.samples} == {f"tombsync_{name}_total"}


def test_no_family_comes_twice(metrics: Metrics) -> None:
    names = [line.split()[2] for line in scrape(metrics).splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_gauges_are_what_the_agent_says(metrics: Metrics) -> None:
    found = samples(metrics)

    def value(name: str, **labels: str) -> float:
        return found[f"tombsync_{name}", tuple(sorted(labels.items()))]

    assert value("tombstones") == 3
    assert value("segments", channel="desertbus", quality="source", state="visible") == 100
    assert value("segments", channel="desertbus", quality="source", state="hidden") == 2
    assert value("segments", channel="desertbus", quality="chat", state="hidden") == 0
    for state in State:
        assert value("deliveries", peer="node-b", state=state.word) == state
    assert value("oldest_unconfirmed_seconds", peer="node-b") == 1.5
    assert value("oldest_unconfirmed_seconds", peer="node-c") == 0
    assert (value("peer_up", peer="node-b"), value("peer_up", peer="node-c")) == (1, 0)
    assert value("watches") == 7
    assert value("rescan_last_completed_timestamp_seconds", kind="interval") == 1_573_613_001
    assert value("worker_beat_age_seconds", worker="intake") == 0.1
    assert value("rescan_interval_seconds", kind="interval") == 300
    assert value("rescan_interval_seconds", kind="full") == 86400
    assert value("root_believed") == 1
    assert value("journal_dropped") == 1
    assert value("coverage_seconds", channel="desertbus", quality="source", state="covered") == 3590.5
    assert value("build_info", version=__version__) == 1


def test_counters_and_histograms_are_what_was_told(metrics: Metrics) -> None:
    tell(metrics, 2)
    found = samples(metrics)
    assert found["tombsync_push_failures_total", (("peer", "node-b"), ("reason", "timeout"))] == 3
    assert found["tombsync_missed_by_watch_total", ()] == 3
    assert found["tombsync_hide_seconds_count", (("source", "watch"),)] == 3
    assert found["tombsync_hide_seconds_sum", (("source", "watch"),)] == pytest.approx(0.0009)
    assert found["tombsync_hide_seconds_bucket", (("le", "0.0002"), ("source", "watch"))] == 0
    assert found["tombsync_hide_seconds_bucket", (("le", "0.0005"), ("source", "watch"))] == 3
    assert found["tombsync_hide_seconds_bucket", (("le", "+Inf"), ("source", "watch"))] == 3


def test_nothing_grows_with_time_or_segments() -> None:
    """The same series after a thousand times as much of everything: a year's archive has 47 million segments."""
    little, much = Metrics(), Metrics()
    little.ask(Sources())
    much.ask(Sources(steps=1_000))
    tell(little)
    tell(much, 1_000)
    assert samples(little).keys() == samples(much).keys()
    assert samples(much)["tombsync_tombstones", ()] == 3_000


def test_buckets_are_the_same_from_the_first_observation_on(metrics: Metrics) -> None:
    before = {key for key in samples(metrics) if key[0] == "tombsync_hide_seconds_bucket"}
    for value in (0.0, 0.01, 5.0, 1e9):
        metrics.hide_seconds.labels("watch").observe(value)
    assert {key for key in samples(metrics) if key[0] == "tombsync_hide_seconds_bucket"} == before


def test_a_scrape_before_the_agent_is_built_has_what_was_told() -> None:
    metrics = Metrics()
    metrics.restored.inc()
    assert samples(metrics)["tombsync_restored_total", ()] == 1
    assert "tombsync_tombstones" not in families(metrics)


def test_each_scrape_asks_again() -> None:
    sources, metrics = Sources(), Metrics()
    metrics.ask(sources)
    assert samples(metrics)["tombsync_watches", ()] == 7
    sources.steps = 2
    assert samples(metrics)["tombsync_watches", ()] == 14


def test_registering_asks_nothing() -> None:
    class NotYet(Sources):
        def tombstones(self) -> int:
            raise AssertionError("asked before the first scrape")

    Metrics().ask(NotYet())


def test_a_channel_of_whatever_name_is_one_line() -> None:
    class Odd(Sources):
        def segments(self) -> Iterable[tuple[str, str, int, int]]:
            for channel in (BAD_UTF8, "a\nb", 'quote"d', "back\\slash", "\u00e9\U0001f47b", "{}"):
                yield channel, "source", 1, 2

    metrics = Metrics()
    metrics.ask(Odd())
    found = samples(metrics)
    channels = {dict(labels)["channel"] for name, labels in found if name == "tombsync_segments"}
    assert len(channels) == 6
    assert {'quote"d', "\u00e9\U0001f47b", "{}"} <= channels


def test_the_process_itself_is_measured(metrics: Metrics) -> None:
    text = scrape(metrics)
    assert "process_resident_memory_bytes " in text
    assert "process_open_fds " in text


def test_two_agents_in_one_process_do_not_share(metrics: Metrics) -> None:
    other = Metrics()
    other.restored.inc(5)
    assert samples(metrics)["tombsync_restored_total", ()] == 1
