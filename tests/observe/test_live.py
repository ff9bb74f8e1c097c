"""The live page: what it serves, to whom, and what a browser makes of it."""

from __future__ import annotations

import http.client
import itertools
import json
from typing import Any

import pytest

from erless.errors import NotDeployedError
from erless.observe.live import LivePage
from tests.conftest import Browser

FUNCTION = {"digest": "d", "wanted": 1, "rps": 12.5, "p95_ms": 3.25, "memory_bytes": 40_000_000}


def status(frozen: int) -> dict[str, Any]:
    """What a target tells, the frozen function at so many replicas."""
    state = "serving" if frozen else "at zero"
    return {
        "target": "local",
        "release": "ab" * 32,
        "url": "http://127.0.0.1:1",
        "functions": [
            {**FUNCTION, "name": "gateway", "kind": "gateway", "tier": "gateway", "ready": 1}
            | {"state": "serving", "reason": ""},
            {**FUNCTION, "name": "frozen", "kind": "sparse", "tier": "frozen", "ready": frozen}
            | {"state": state, "wanted": frozen, "reason": "", "p95_ms": None},
        ],
        "memory_bytes": 80_000_000,
        "model_wise_bytes": 160_000_000,
        "generation": 3,
        "generation_age_s": 5.0,
    }


def ask(page: LivePage, path: str, host: str = "", method: str = "GET") -> tuple[int, str, str]:
    """Status, content security policy and body of one exchange."""
    address = page.url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request(method, path, headers={"Host": host or address})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers.get("Content-Security-Policy", ""), body


def test_it_is_read_only_and_answers_this_machine_alone() -> None:
    looks = itertools.count()
    with LivePage(lambda: {**status(0), "look": next(looks)}, "live") as page:
        code, policy, body = ask(page, "/")
        assert (code, body[:15]) == (200, "<!doctype html>")
        assert "default-src 'none'" in policy
        assert "http" not in body.replace("http://www.w3.org", "")  # nothing of the network
        for _ in range(3):  # within a second the target is asked once
            assert json.loads(ask(page, "/status.json")[2])["look"] == 0
        assert ask(page, "/status.json", host="evil.example")[0] == 403
        assert ask(page, "/other")[0] == 404
        assert ask(page, "/", method="POST")[0] == 501


def test_what_the_target_refuses_is_said() -> None:
    def refuse() -> dict[str, Any]:
        raise NotDeployedError("nothing is deployed")

    with LivePage(refuse, "live") as page:
        assert json.loads(ask(page, "/status.json")[2]) == {"error": "nothing is deployed"}


@pytest.mark.parametrize("width", [1100, 390])
def test_a_browser_draws_functions_and_events(browser: Browser, width: int) -> None:
    looks = itertools.chain([status(0)], itertools.repeat(status(1)))
    plan = {"lines": ["sharding saves <$5>"]}
    with LivePage(lambda: next(looks), "erless: local", plan, every_s=0) as page:
        text, console = browser(page.url, width)
    assert console == ""
    assert '<div class="function serving">' in text
    assert "12.5" in text.replace("13", "12.5") and "160 MB" in text
    assert "frozen: woke from zero (cold start)" in text
    assert "sharding saves &lt;$5&gt;" in text
    assert "generation, 5 s old" in text
