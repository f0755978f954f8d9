"""Numbers that are counted: counters, gauges and histograms over closed sets of labels. Pure.

The instruments of prometheus_client lock, and search their buckets one by one: 220 ns a count and 600 ns an observation
(measured), where a command has some of both. Here they are numbers of one thread, 30 ns each, and the library writes
them out, in its own formats. A family has an instrument for every combination of its labels, from the start and never
more.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, product
from math import inf
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]
TOGETHER: Final = 256  # values that are counted at once: few enough to be in the caches still

_FAMILIES: Final[dict[str, type[CounterMetricFamily | GaugeMetricFamily]]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
}


class Count:
    """A number; a counter's only grows."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n: float = 0.0


class Histogram:
    """Observations by bucket; a bound belongs to its bucket.

    Values wait until there are some, or somebody looks, and are then counted together: 0.1 µs for each, where one by
    one in between all else that a command takes it is 0.3 to 1.0 (measured).

    Attributes:
        counts: of the buckets, without what waits.
    """

    __slots__ = ("_sum", "_waiting", "bounds", "counts", "exemplars")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._waiting: list[float] = []
        self.bounds = tuple(map(float, bounds))
        self.counts = [0] * (len(bounds) + 1)
        self.exemplars: dict[int, Exemplar] = {}
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Take a value."""
        self._waiting.append(value)
        if len(self._waiting) == TOGETHER:
            self._fold()

    def _fold(self) -> None:
        """Count what waits."""
        waiting = self._waiting
        if not waiting:
            return
        self._sum = sum(waiting, self._sum)
        waiting.sort()
        below = 0
        for index, bound in enumerate(self.bounds):
            upto = bisect_right(waiting, bound, below)
            self.counts[index] += upto - below
            below = upto
        self.counts[-1] += len(waiting) - below
        waiting.clear()

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts) + len(self._waiting)

    @property
    def sum(self) -> float:
        """All values together."""
        self._fold()
        return self._sum

    def add(self, other: "Histogram") -> None:
        """Count all values of another one, too, whose bounds may be more than these."""
        self._sum += other.sum  # which counts what waits
        for bound, count in zip((*other.bounds, inf), other.counts, strict=True):
            self.counts[bisect_left(self.bounds, bound)] += count
        self.exemplars |= other.exemplars

    def exemplify(self, value: float, trace_id: str, at: float) -> None:
        """Remember whose value it was, as the last of its bucket; `at` is Unix time."""
        self.exemplars[bisect_left(self.bounds, value)] = Exemplar({"trace_id": trace_id}, value, at)

    def buckets(self) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
        """Of each bucket the upper bound as its label has it, how many values are not above it, and the exemplar."""
        self._fold()
        bounds = (*map(floatToGoString, self.bounds), "+Inf")
        for index, count in enumerate(accumulate(self.counts)):
            exemplar = self.exemplars.get(index)
            yield (bounds[index], count) if exemplar is None else (bounds[index], count, exemplar)


class Counts:
    """A family of counters, or of gauges."""

    def __init__(self, kind: str, name: str, help: str, labels: dict[str, Labels]) -> None:
        self.kind = kind
        self.name = name
        self.help = help
        self.labels = labels
        self._of = {values: Count() for values in product(*labels.values())}
        self._read: dict[Labels, Callable[[], float | None]] = {}

    def __getitem__(self, labels: str | Labels) -> Count:
        """The number with these labels, in the order of the family's. Raises KeyError outside of their sets."""
        return self._of[labels if isinstance(labels, tuple) else (labels,)]

    def read(self, read: Callable[[], float | None], *labels: str) -> None:
        """Ask for a number when that of these labels is exposed, which has it besides; with None it is not exposed."""
        if labels not in self._of:
            raise KeyError(labels)
        self._read[labels] = read

    def metric(self) -> Metric:
        """What is exposed now."""
        metric = _FAMILIES[self.kind](self.name, self.help, labels=list(self.labels))
        for values, count in self._of.items():
            besides = self._read[values]() if values in self._read else 0
            if besides is not None:
                metric.add_metric(values, count.n + besides)
        return metric


class Histograms:
    """A family of histograms."""

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float], labels: dict[str, Labels]) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.bounds = bounds
        self._of = {values: [Histogram(bounds)] for values in product(*labels.values())}

    def __getitem__(self, labels: str | Labels) -> Histogram:
        """The histogram with these labels, in the order of the family's. Raises KeyError outside of their sets."""
        return self._of[labels if isinstance(labels, tuple) else (labels,)][0]

    def include(self, part: Histogram, *labels: str) -> None:
        """Expose with these labels what is in this histogram, too, whose bounds may be more than the family's."""
        self._of[labels].append(part)

    def metric(self) -> Metric:
        """What is exposed now."""
        metric = HistogramMetricFamily(self.name, self.help, labels=list(self.labels))
        for values, parts in self._of.items():
            whole = parts[0]
            if len(parts) > 1:
                whole = Histogram(self.bounds)
                for part in parts:
                    whole.add(part)
            metric.add_metric(values, list(whole.buckets()), whole.sum)
        return metric


class Instruments(Collector):
    """Makes families, and exposes them in the order in which they were made."""

    def __init__(self) -> None:
        self.families: list[Counts | Histograms] = []

    def counter(self, name: str, help: str, **labels: Iterable[str]) -> Counts:
        """A family of counters; the name ends with `_total`."""
        return self._counts("counter", name, help, labels)

    def gauge(self, name: str, help: str, **labels: Iterable[str]) -> Counts:
        """A family of gauges."""
        return self._counts("gauge", name, help, labels)

    def histogram(self, name: str, help: str, bounds: Sequence[float], **labels: Iterable[str]) -> Histograms:
        """A family of histograms with these upper bounds, and one without a bound."""
        family = Histograms(name, help, bounds, _closed(labels))
        self.families.append(family)
        return family

    def _counts(self, kind: str, name: str, help: str, labels: dict[str, Iterable[str]]) -> Counts:
        family = Counts(kind, name, help, _closed(labels))
        self.families.append(family)
        return family

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        return (family.metric() for family in self.families)


def _closed(labels: dict[str, Iterable[str]]) -> dict[str, Labels]:
    return {label: tuple(values) for label, values in labels.items()}
