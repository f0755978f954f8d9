"""What each answer of a broker to the CONNECT of a device means."""

import pytest

from gateway.auth.base import DeviceKey, Verdict
from gateway.auth.broker import BrokerAuthenticator
from gateway.mqtt import values as mqtt

NO_ANSWER = (0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9B, 0x9C, 0x9F)


class Plate:
    """A device whose broker gives one answer; `link` is the device itself."""

    def __init__(self, answer: mqtt.Verdict, *, gone: bool = False) -> None:
        self.link = self
        self.tried: list[tuple[str | None, bytes | None]] = []
        self._answer = answer
        self._gone = gone

    async def give_way(self) -> bool:
        return self._gone

    async def prove(self, credentials: mqtt.Credentials) -> mqtt.Verdict:
        self.tried.append((credentials.username, credentials.password))
        return self._answer


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (mqtt.Opened(True), Verdict.ACCEPTED),
        (mqtt.Opened(False), Verdict.ACCEPTED),
        (mqtt.Refused(0x86, ""), Verdict.DENIED),
        (mqtt.Refused(0x87, ""), Verdict.DENIED),
        (mqtt.Unavailable(""), Verdict.UNAVAILABLE),
        *((mqtt.Refused(code, ""), Verdict.UNAVAILABLE) for code in NO_ANSWER),
    ],
)
async def test_what_an_answer_means(answer: mqtt.Verdict, verdict: Verdict) -> None:
    plate = Plate(answer)
    assert await BrokerAuthenticator(plate).check(DeviceKey("AC1", "密钥", "192.0.2.1")) is verdict
    assert plate.tried == [("AC1", "密钥".encode())]


async def test_a_device_that_another_node_has_by_now_is_not_taken_back() -> None:
    plate = Plate(mqtt.Opened(True), gone=True)
    assert await BrokerAuthenticator(plate).check(DeviceKey("AC1", "key")) is Verdict.MOVED
    assert plate.tried == []
