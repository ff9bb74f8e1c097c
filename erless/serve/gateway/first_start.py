"""The first start of a release's gateway, where nobody else looks whether its functions are ready.

A reconciler applies a gateway and the shards that it calls at once, and Knative moves the queries
to a revision that is ready. So the first gateways of a release get ready once every function that
they call has answered, frozen ones too: whoever waits for them is the gateway before.

Once the deployment's own address answers for this release, queries have moved. Replicas that come
then get ready at once: none waits for a function that is at zero, or that is down for a while.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from erless.http.client.endpoint import CallError, Endpoint, Reply
from erless.serve.gateway.remote import RemoteDense, RemoteShard
from erless.serve.logs import Log

__all__ = ["release_answers", "wait_for_functions"]

ASK_S = 5.0  # for the gateways of the release that serves
AGAIN_S = 0.5
TOLD_S = 30.0


async def release_answers(url: str, model: str, release: str) -> bool:
    """Whether the gateways at `url` answer for `release` already.

    Args:
        url: of the deployment's gateway.
        model: its name in the protocol's paths.
        release: a digest.
    """
    endpoint = Endpoint(url, ASK_S, lambda: None)
    answered: asyncio.Future[Reply | CallError] = asyncio.get_running_loop().create_future()
    request = b"GET /v2/models/%b HTTP/1.1\r\nhost: %b\r\n\r\n" % (
        model.encode(),
        endpoint.authority,
    )

    def keep(reply: Reply | CallError) -> None:
        if not answered.done():
            answered.set_result(reply)

    try:
        endpoint.send([request], keep)
        async with asyncio.timeout(ASK_S):
            reply = await answered
        if isinstance(reply, CallError) or reply.status != 200:
            return False
        return bool(json.loads(bytes(reply.body))["parameters"]["digest"] == release)
    except (TimeoutError, ValueError, KeyError, TypeError):
        return False
    finally:
        endpoint.close()


async def wait_for_functions(
    functions: Sequence[RemoteShard | RemoteDense], limit_s: float, log: Log
) -> None:
    """Wait until each of `functions` has answered that it is ready, `limit_s` at most.

    Those at zero wake. Who is waited for, and why, is logged.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    told_at = loop.time()
    reasons = {remote.label: "no answer so far" for remote in functions}

    async def wait_for(remote: RemoteShard | RemoteDense) -> None:
        nonlocal told_at
        while reason := await remote.is_ready(end - loop.time()):
            reasons[remote.label] = reason
            if loop.time() - told_at >= TOLD_S:
                told_at = loop.time()
                log.warning("waiting for the functions of a new release", **reasons)
            await asyncio.sleep(AGAIN_S)
        reasons.pop(remote.label, None)

    waits = [loop.create_task(wait_for(remote)) for remote in functions]
    try:
        async with asyncio.timeout_at(end):
            await asyncio.gather(*waits)
    except TimeoutError:
        log.warning("these functions did not get ready", **reasons)
    finally:
        for task in waits:
            task.cancel()
