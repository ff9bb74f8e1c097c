"""One replica, watched by nobody but the test (tests/deploy/toy.py)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from erless.deploy.local.supervisor.folder.state_folder import StateFolder
from erless.deploy.local.supervisor.replica.replica import Replica, ReplicaContext, ReplicaPhase
from erless.deploy.local.supervisor.replica.spawner import Spawner
from erless.deploy.local.supervisor.sockets import listen
from tests.deploy.fleets import TIMING, WAIT_S, function, get

SLOW_S = 2.0  # longer than any patience for one that loads


def test_one_that_became_ready_unnoticed_answers_before_it_ends(tmp_path: Path) -> None:
    """The supervisor asks now and then: a replica may serve already when it is told to stop."""
    spec = function("gateway", "gateway", "a1", TOY_SLOW_S=str(SLOW_S), TOY_NAME="one")
    folder, spawner, public = StateFolder(tmp_path / "state"), Spawner(tmp_path), listen(0)
    folder.make()

    async def stopped() -> tuple[str, Replica]:
        gone: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        context = ReplicaContext(folder, spawner, TIMING, dict(os.environ))
        replica = Replica(spec, 0, public.fileno(), context, {}, gone.set_result)
        port = public.getsockname()[1]
        query = asyncio.create_task(asyncio.to_thread(get, f"http://127.0.0.1:{port}/infer"))
        async with asyncio.timeout(WAIT_S):
            while not replica.counters.in_flight:
                await replica.poll()
            assert replica.phase is ReplicaPhase.STARTING  # it was not asked whether it is ready
            replica.stop()
            return (await query)["release"], await gone

    try:
        release, replica = asyncio.run(stopped())
    finally:
        spawner.close()
        public.close()
        folder.close()
    assert release == "one"
    assert replica.exit_code == 0
    assert replica.drained
