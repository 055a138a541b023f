"""The agent's Prometheus metrics: names, help texts and buckets in one place, on a registry of the agent's own.

Counters and histograms are told by the workers; gauges are asked of `Sources` at each scrape, so that no worker keeps a
copy of what another already counts. No label grows with time or with the number of segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from tombsync import __version__
from tombsync.names import printable
from tombsync.plan import State

# Around the figures that benchmarks/hide.py and benchmarks/push.py print: 0.2 ms to a minute and beyond.
_HIDE_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 10, 60, 600)
_PUSH_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 30, 60, 300, 3600)
_RESCAN_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800)


disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter, which nobody asks


class Sources(Protocol):
    """What a scrape asks. Every method is quick and safe to call from any thread."""

    def tombstones(self) -> int:
        """Recorded tombstones."""

    def segments(self) -> Iterable[tuple[str, str, int, int]]:
        """(channel, quality, visible, hidden) files."""

    def deliveries(self) -> Iterable[tuple[str, State, int]]:
        """(peer, state, count)."""

    def oldest_unconfirmed_s(self) -> Iterable[tuple[str, float]]:
        """(peer, age); 0 where nothing is open."""

    def peers_up(self) -> Iterable[tuple[str, bool]]:
        """(peer, whether its session stands)."""

    def canary_ages_s(self) -> Iterable[tuple[str, float]]:
        """(peer, seconds since the whole way to it was last found to stand)."""

    def inbox_waiting(self) -> Iterable[tuple[str, int]]:
        """(sender, files in its inbox at the last look)."""

    def watches(self) -> int:
        """Directories watched."""

    def rescans_completed(self) -> Iterable[tuple[str, float]]:
        """(kind, Unix time in seconds) of each kind that ended at least once."""

    def root_believed(self) -> bool:
        """Whether the tree at ROOT is the one the index was made of."""

    def beat_ages_s(self) -> dict[str, float]:
        """Seconds since each worker's last turn."""

    def journal_dropped(self) -> int:
        """Audit records that could not be kept."""

    def coverage_s(self) -> Iterable[tuple[str, str, str, float]]:
        """(channel, quality, state, seconds) of all hours that were judged."""


class Metrics:
    """Every metric of the agent. Safe to use from all threads."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tombsync_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"tombsync_{name}", text, labels, registry=registry, buckets=buckets)

        self.hide_seconds = histogram(
            "hide_seconds", "From the event (watch) or the file's ctime (others) to hidden.", _HIDE_BUCKETS, "source"
        )
        self.push_seconds = histogram(
            "push_seconds", "From hidden here to confirmed by the peer.", _PUSH_BUCKETS, "peer"
        )
        self.rescan_seconds = histogram("rescan_seconds", "Duration of a whole rescan.", _RESCAN_BUCKETS, "kind")
        self._rescan_interval = Gauge(
            "tombsync_rescan_interval_seconds", "How often a rescan of each kind is due.", ["kind"], registry=registry
        )
        self.push_failures = counter("push_failures", "Sessions and deliveries that failed.", "peer", "reason")
        self.missed_by_watch = counter("missed_by_watch", "Tombstones that a rescan saw first, after the first rescan.")
        self.watch_overflows = counter("watch_overflows", "Times that the kernel's event queue overflowed.")
        self.watch_errors = counter("watch_errors", "Directories that could not be watched.")
        self.rejected = counter("rejected", "Names that were not taken.", "source", "reason")
        self.restored = counter("restored", "Vanished tombstones that were put back.")
        self.data_returned = counter("data_returned", "Data files that came back beside a tombstone after a purge.")
        twins_of_hidden = counter(
            "twins_of_hidden", "Segments that arrived within a takedown; sticky ones were hidden at once.", "sticky"
        )
        # Both are there from the start: what counts from nothing to one is no increase to Prometheus.
        self.twins_of_hidden = {sticky: twins_of_hidden.labels(str(sticky).lower()) for sticky in (True, False)}
        self.index_retries = counter("index_retries", "Index transactions that failed and were tried again.")
        self.wsgi_app = make_wsgi_app(registry, disable_compression=True)

    def forget_peer(self, peer: str) -> None:
        """Its series end: it is one no more."""
        for metric in (self.push_seconds, self.push_failures):
            metric.remove_by_labels({"peer": peer})

    def ask(self, sources: Sources) -> None:
        """Let scrapes ask for the gauges too. Called once, when everything that they ask about exists."""
        self.registry.register(cast(Collector, _Gauges(sources)))

    def tell_intervals(self, interval_s: float, full_interval_s: float) -> None:
        """How often a rescan of each kind is due from now on."""
        self._rescan_interval.labels("interval").set(interval_s)
        self._rescan_interval.labels("full").set(full_interval_s)


class _Gauges:
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        return ()  # so that registering asks nothing

    def collect(self) -> Iterator[Metric]:
        ask = self._sources

        def gauge(
            name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], float]]
        ) -> Metric:
            family = GaugeMetricFamily(f"tombsync_{name}", text, labels=labels)
            for values, value in rows:
                family.add_metric(values, value)
            return family

        yield gauge("tombstones", "Recorded tombstones.", (), [((), ask.tombstones())])
        yield gauge(
            "segments",
            "Segment files in the index.",
            ("channel", "quality", "state"),
            (
                ((printable(channel), printable(quality), state), count)
                for channel, quality, visible, hidden in ask.segments()
                for state, count in (("visible", visible), ("hidden", hidden))
            ),
        )
        yield gauge(
            "deliveries",
            "Deliveries by peer and state.",
            ("peer", "state"),
            (((peer, state.word), count) for peer, state, count in ask.deliveries()),
        )
        yield gauge(
            "oldest_unconfirmed_seconds",
            "Age of the oldest tombstone that a peer has not confirmed; 0 where there is none.",
            ("peer",),
            (((peer,), age) for peer, age in ask.oldest_unconfirmed_s()),
        )
        yield gauge(
            "peer_up", "Whether the session with a peer stands.", ("peer",), (((p,), up) for p, up in ask.peers_up())
        )
        yield gauge(
            "canary_age_seconds",
            "Since the whole way to a peer was last found to stand; looked at each minute.",
            ("peer",),
            (((peer,), age) for peer, age in ask.canary_ages_s()),
        )
        yield gauge(
            "inbox_waiting",
            "Files that wait in the inbox of a sender.",
            ("peer",),
            (((sender,), count) for sender, count in ask.inbox_waiting()),
        )
        yield gauge("watches", "Directories watched by inotify.", (), [((), ask.watches())])
        yield gauge(
            "rescan_last_completed_timestamp_seconds",
            "When a rescan of each kind last ended.",
            ("kind",),
            (((kind,), at) for kind, at in ask.rescans_completed()),
        )
        yield gauge(
            "root_believed", "Whether the segment tree is there and is the known one.", (), [((), ask.root_believed())]
        )
        yield gauge(
            "coverage_seconds",
            "Time in all hours of a quality; covered, tombstoned and hole add up, editable and partial are of covered.",
            ("channel", "quality", "state"),
            (
                ((printable(channel), printable(quality), state), seconds)
                for channel, quality, state, seconds in ask.coverage_s()
            ),
        )
        yield gauge("journal_dropped", "Audit records lost since the start.", (), [((), ask.journal_dropped())])
        yield gauge(
            "worker_beat_age_seconds",
            "Seconds since each worker's last turn.",
            ("worker",),
            (((worker,), age) for worker, age in ask.beat_ages_s().items()),
        )
        build = InfoMetricFamily("tombsync_build", "The version that runs.")
        build.add_metric((), {"version": __version__})
        yield build
