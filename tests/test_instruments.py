"""Instruments: numbers that prometheus_client writes out as it writes its own."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client import Histogram as TheirHistogram
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from gateway.instruments import TOGETHER, Histogram, Instruments

BOUNDS = (0.001, 0.25, 1, 2, 10)


def exposed(make: Instruments, *, openmetrics: bool = False) -> str:
    registry = CollectorRegistry()
    registry.register(make)
    text: bytes = (generate_openmetrics if openmetrics else generate_latest)(registry)
    return text.decode()


@given(st.lists(st.floats(0, 20) | st.sampled_from(BOUNDS)))
def test_exposes_what_the_library_exposes(values: list[float]) -> None:
    """The same counts, bounds and bucket of a value that is a bound; the library is the reference."""
    make, registry = Instruments(), CollectorRegistry()
    ours = make.histogram("h_seconds", "How long.", BOUNDS, kind=("a", "b"))
    count, gauge = make.counter("c_total", "How often.", what=("x", 'quo"te')), make.gauge("g", "How many.")
    theirs: Any = TheirHistogram("h_seconds", "How long.", ["kind"], buckets=BOUNDS, registry=registry)
    their_count: Any = Counter("c", "How often.", ["what"], registry=registry)
    their_gauge: Any = Gauge("g", "How many.", registry=registry)
    for kind in ("a", "b"):
        theirs.labels(kind)
    for what in ("x", 'quo"te'):
        their_count.labels(what)
    for value in values:
        ours["b"].observe(value)
        theirs.labels("b").observe(value)
        count['quo"te'].n += value
        their_count.labels('quo"te').inc(value)
        gauge[()].n -= value
        their_gauge.dec(value)
    expected = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    found = exposed(make).splitlines()
    assert [line for line in found if "_sum" not in line] == [line for line in expected if "_sum" not in line]
    sums, theirs = ([float(line.split()[-1]) for line in lines if "_sum" in line] for lines in (found, expected))
    assert sums == pytest.approx(theirs)  # from Python 3.12 on ours have no rounding errors


def test_no_more_waits_than_is_counted_at_once() -> None:
    histogram = Instruments().histogram("h", "", BOUNDS)[()]
    for _ in range(10 * TOGETHER):
        histogram.observe(1.0)
        assert len(histogram._waiting) < TOGETHER
    assert histogram.count == 10 * TOGETHER


@given(st.lists(st.floats(0, 20) | st.sampled_from(BOUNDS)), st.lists(st.floats(0, 20) | st.sampled_from(BOUNDS)))
def test_what_was_counted_is_as_what_still_waits(first: list[float], then: list[float]) -> None:
    make, other = Instruments(), Instruments()
    histogram, in_one_go = (each.histogram("h", "", BOUNDS)[()] for each in (make, other))
    for value in first:
        histogram.observe(value)
    assert histogram.count == len(first)
    assert len(list(histogram.buckets())) == len(BOUNDS) + 1
    for value in then:
        histogram.observe(value)
    for value in (*first, *then):
        in_one_go.observe(value)
    assert histogram.count == len(first) + len(then)
    assert list(histogram.buckets()) == list(in_one_go.buckets())
    assert histogram.sum == pytest.approx(in_one_go.sum)


@given(st.lists(st.floats(0, 20) | st.sampled_from(BOUNDS)), st.lists(st.floats(0, 20) | st.sampled_from(BOUNDS)))
def test_what_is_included_is_exposed_as_if_it_were_observed_there(mine: list[float], included: list[float]) -> None:
    """Also from a histogram with more bounds."""
    make, reference = Instruments(), Instruments()
    family, expected = make.histogram("h", "", BOUNDS), reference.histogram("h", "", BOUNDS)[()]
    finer = Histogram((*BOUNDS[:2], 0.5, *BOUNDS[2:], 15))
    family.include(finer)
    for value in mine:
        family[()].observe(value)
    for value in included:
        finer.observe(value)
    for value in (*mine, *included):
        expected.observe(value)
    assert finer.count == len(included)
    assert exposed(make).splitlines()[:-1] == exposed(reference).splitlines()[:-1]
    assert [metric.samples[-1].value for metric in make.collect()] == [pytest.approx(expected.sum)]


def test_every_series_is_there_from_the_start_and_no_other_can_be() -> None:
    make = Instruments()
    family = make.counter("c_total", "", event=("a", "b"), status=("ok", "bad"))
    lines = [line for line in exposed(make).splitlines() if not line.startswith("#")]
    assert lines == [f'c_total{{event="{e}",status="{s}"}} 0.0' for e in "ab" for s in ("ok", "bad")]
    for labels in ("a", ("a", "worse"), ("a", "ok", "x"), ()):
        with pytest.raises(KeyError):
            family[labels]
    with pytest.raises(KeyError):
        family.read(lambda: 1, "c", "ok")


def test_a_number_may_be_asked_for_when_it_is_exposed() -> None:
    make = Instruments()
    family = make.gauge("g", "", use=("a", "b"))
    numbers: list[float | None] = [None, 7]
    family.read(numbers.pop, "a")
    assert 'g{use="a"} 7.0\ng{use="b"} 0.0' in exposed(make)
    assert 'use="a"' not in exposed(make), "None is not exposed"


def test_an_exemplar_is_in_its_bucket_in_openmetrics_and_the_last_one_counts() -> None:
    make = Instruments()
    histogram = make.histogram("h", "", BOUNDS)[()]
    for value, trace in ((0.5, "first"), (0.7, "second"), (99, "beyond")):
        histogram.observe(value)
        histogram.exemplify(value, trace, 1700000000.5)
    lines = exposed(make, openmetrics=True).splitlines()
    assert 'h_bucket{le="1.0"} 2.0 # {trace_id="second"} 0.7 1700000000.5' in lines
    assert 'h_bucket{le="+Inf"} 3.0 # {trace_id="beyond"} 99.0 1700000000.5' in lines
    assert 'h_bucket{le="2.0"} 2.0' in lines
    assert "trace_id" not in exposed(make)
