"""Verdicts that are remembered for a while. Pure; `now` in seconds."""

from collections import OrderedDict

from gateway.auth.base import Verdict


class Verdicts:
    """The verdicts on claims, each claim named by a digest of it. Bounded: the oldest goes first.

    Wrong keys are kept apart, so that no flood of them pushes out the right ones. UNAVAILABLE is never kept.

    Args:
        accepted_s: how long a right key is remembered; 0 is not at all.
        denied_s: the same for a wrong one.
        most: entries of each kind.
    """

    def __init__(self, accepted_s: float, denied_s: float, most: int) -> None:
        self._kept_s = {Verdict.ACCEPTED: accepted_s, Verdict.DENIED: denied_s}
        self._until: dict[Verdict, OrderedDict[bytes, float]] = {kind: OrderedDict() for kind in self._kept_s}
        self._most = most

    def get(self, digest: bytes, now: float) -> Verdict | None:
        """The verdict on a claim, if it is remembered."""
        for verdict, until in self._until.items():
            if until.get(digest, now) > now:
                return verdict
        return None

    def put(self, digest: bytes, verdict: Verdict, now: float) -> None:
        """Remember a verdict in place of an earlier one."""
        for until in self._until.values():
            until.pop(digest, None)
        kept_s = self._kept_s.get(verdict, 0.0)
        if kept_s <= 0:
            return
        entries = self._until[verdict]
        entries[digest] = now + kept_s
        while len(entries) > self._most or next(iter(entries.values())) <= now:
            entries.popitem(last=False)

    def __len__(self) -> int:
        return sum(map(len, self._until.values()))
