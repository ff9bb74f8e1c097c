"""How often an alert is raised."""

from __future__ import annotations

from erless.specs.alerts import PERIOD_S, Alert, AlertLimiter


def touch(source: str, asked: str = "GET /") -> Alert:
    return Alert(time="", kind="decoy", function="cold-1", source=source, asked=asked)


def test_a_source_raises_one_alert_a_minute_and_none_is_lost() -> None:
    now = [0.0]
    limiter = AlertLimiter(lambda: now[0])
    told = 0
    for second in range(600):  # somebody asks once a second for ten minutes
        now[0] = float(second)
        admitted = limiter.admit(touch("10.0.0.1"))
        told += admitted.count if admitted else 0
        assert (admitted is not None) == (second % PERIOD_S == 0)
    assert limiter.holds is True
    now[0] += PERIOD_S
    (rest,) = limiter.due()
    assert told + rest.count == 600
    assert limiter.due() == []


def test_sources_and_kinds_are_told_apart_up_to_a_bound() -> None:
    limiter = AlertLimiter(lambda: 0.0)
    assert limiter.admit(touch("10.0.0.1")) is not None
    assert limiter.admit(touch("10.0.0.2")) is not None
    assert limiter.admit(touch("10.0.0.1", asked="")) is not None  # a connection
    found = [limiter.admit(touch(f"10.1.{n // 256}.{n % 256}")) for n in range(5000)]
    sources = {alert.source for alert in found if alert}
    assert "others" in sources
    assert len(sources) < 1100
