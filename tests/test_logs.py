"""Log lines: one record stays one line, whatever a peer puts into it."""

import json
import logging
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import logs
from gateway.config import Log
from gateway.engine.effects import CloseReason
from gateway.logs import MAX_VALUE_CHARS

HOSTILE = "x\n12:00:00.000 ERROR forged\x1b[31m\r\x00\x9b\u2028\u202e\ud800"
FORMATTERS = {"human": logs._Human({}), "json": logs._Json({})}


def record(message: str = "device here", exc_info: Any = None, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "levelno": logging.INFO, "levelname": "INFO", "name": "gateway.x"})
    made.exc_info = exc_info
    vars(made).update(extra)
    return made


def as_json(made: logging.LogRecord) -> Any:
    return json.loads(FORMATTERS["json"].format(made))


def raised(message: str) -> Any:
    try:
        raise ValueError(message)
    except ValueError:
        return sys.exc_info()


def test_for_people() -> None:
    made = record(serial="s1", code=135, took_s=0.5)
    time, rest = FORMATTERS["human"].format(made).split(" ", 1)
    when = datetime.fromisoformat(time)
    assert when.utcoffset() == datetime.now().astimezone().utcoffset()
    assert abs(when.timestamp() - made.created) < 0.001
    assert rest == "INFO    device here serial=s1 code=135 took_s=0.5"


def test_for_machines() -> None:
    made = record(serial="s1", code=135, ok=True, reason=None, filters=("a/#",))
    assert as_json(made) == {
        "time": round(made.created, 3),
        "level": "info",
        "logger": "gateway.x",
        "message": "device here",
        "serial": "s1",
        "code": 135,
        "ok": True,
        "reason": "None",
        "filters": "('a/#',)",
    }


@pytest.mark.parametrize("form", FORMATTERS)
@pytest.mark.parametrize("where", ["message", "field", "exception"])
def test_no_control_character_gets_through(form: str, where: str) -> None:
    made = {
        "message": record(HOSTILE),
        "field": record(reason=HOSTILE),
        "exception": record(exc_info=raised(HOSTILE)),
    }[where]
    text = FORMATTERS[form].format(made)
    if form == "json":
        assert text.isprintable()
        text = "\n  ".join(f"{value}" for value in json.loads(text).values()).replace("\n", "\n  ")
    assert "�[31m" in text
    first, *rest = text.split("\n")
    assert first.isprintable()
    for line in rest:  # only a traceback has more lines, and none of them can be taken for a line of the log
        assert line.startswith("  ")
        assert line.isprintable()


@pytest.mark.parametrize("form", FORMATTERS)
def test_what_is_long_is_cut(form: str) -> None:
    huge = "x" * 1_000_000
    lines = FORMATTERS[form].format(record(huge, raised(huge), reason=huge, problem="\n" * 1_000_000))
    assert len(lines) < 4 * MAX_VALUE_CHARS + 1000
    assert "x" * MAX_VALUE_CHARS + "…" in lines


@settings(suppress_health_check=[HealthCheck.differing_executors])
@given(st.text(st.characters()), st.text(st.characters()) | st.integers(-(2**63), 2**63) | st.floats() | st.binary())
def test_formatting_never_fails(message: str, value: object) -> None:
    made = record(message.replace("%", ""), value=value)
    assert FORMATTERS["human"].format(made).isprintable()
    assert isinstance(as_json(made), dict)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    for handler in handlers:
        logger.removeHandler(handler)  # `configure` closes what it finds
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_configure(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Log(level="warning", format="json"))
    logs.configure(Log(level="info", format="json"))  # again, as a reload does: one handler is enough
    logging.getLogger("gateway.test").info("device %s", "here", extra={"serial": "s1"})
    logging.getLogger("gateway.test").debug("too much")
    out, err = capsys.readouterr()
    assert not out
    (line,) = err.splitlines()
    assert json.loads(line)["message"] == "device here"
    assert root.level == logging.INFO


async def test_nobody_finds_out_what_no_line_says(root: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    logs.configure(Log())
    root.addHandler(caplog.handler)
    logging.getLogger("gateway.test").info("device here")
    (record,) = caplog.records
    found = {name: getattr(record, name, None) for name in ("threadName", "processName", "process", "taskName")}
    assert set(found.values()) == {None}
    assert record.lineno == 0


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the throttle takes for the time."""
    now = [1000.0]
    monkeypatch.setattr("gateway.logs.time.monotonic", lambda: now[0])
    return now


def test_a_storm_of_one_message_is_cut_and_counted(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    handler = logs.configure(Log(format="json", lines_per_s=2))
    log = logging.getLogger("gateway.test")
    for number in range(1000):
        log.warning("unusable message", extra={"serial": f"AC{number}"})
        clock[0] += 0.001
    log.info("something else")
    told = lines_of(capsys)
    assert [line["serial"] for line in told[:-1]] == [f"AC{number}" for number in range(20)]
    assert told[-1]["message"] == "something else"
    assert (handler.suppressed, handler.records) == (980, {"debug": 0, "info": 1, "warning": 1000, "error": 0})
    clock[0] += logs.WINDOW_S
    log.warning("unusable message")
    summary, again = lines_of(capsys)
    assert summary == {
        "time": summary["time"],
        "level": "warning",
        "logger": "gateway.test",
        "message": "lines suppressed",
        "of": "unusable message",
        "count": 980,
    }
    assert again["message"] == "unusable message"


def test_one_reason_does_not_hide_another(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    """Reasons of a closed set are told apart; what a peer may choose is not, or each would be written."""
    logs.configure(Log(format="json", lines_per_s=1))
    log = logging.getLogger("gateway.test")
    for _ in range(20):
        log.info("device gone", extra={"reason": CloseReason.PING_TIMEOUT})
    log.info("device gone", extra={"reason": CloseReason.SLOW})
    for number in range(20):
        log.info("broker lost", extra={"reason": f"chosen {number}"})
    told = lines_of(capsys)
    assert [line["reason"] for line in told[:11]] == ["ping-timeout"] * 10 + ["slow"]
    assert len(told) == 21


def test_what_was_suppressed_is_told_at_the_end_and_when_nothing_else_is_logged(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    handler = logs.configure(Log(format="json", lines_per_s=1))
    log = logging.getLogger("gateway.test")
    for _ in range(2):
        for _ in range(15):
            log.info("device gone", extra={"reason": CloseReason.SLOW})
        clock[0] += logs.WINDOW_S
        handler.tell_suppressed()
        (*_, summary) = lines_of(capsys)
        assert (summary["of"], summary["reason"], summary["count"]) == ("device gone", "slow", 5)
        handler.tell_suppressed()
        assert not lines_of(capsys)
    for _ in range(11):
        log.info("device here")
    handler.close()
    assert lines_of(capsys)[-1]["count"] == 1


def test_messages_without_end_are_one_message(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    """Of a library, say, that writes a name into each."""
    logs.configure(Log(format="json", lines_per_s=1))
    log = logging.getLogger("gateway.test")
    for number in range(5000):
        log.info(f"message {number}")  # noqa: G004
    assert len(lines_of(capsys)) == logs.MAX_KEYS + 10
