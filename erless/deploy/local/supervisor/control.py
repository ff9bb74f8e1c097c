"""The supervisor's ear: JSON lines over the unix socket `run/control`.

A client sends one request, `{"do": "status"}`, and reads lines until one holds `result` or `error`;
`progress` lines may come before. A client that goes away while a release is not current yet has
changed its mind (Ctrl-C): the change is undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import traceback
from typing import Any

from pydantic import ValidationError

from erless.deploy.local.supervisor import cutover
from erless.deploy.local.supervisor.fleet import LocalFleet
from erless.deploy.local.supervisor.folder.state_folder import CONTROL
from erless.deploy.local.supervisor.spec import ReleaseSpec, StoredState
from erless.errors import DeployError, ErlessError, NotDeployedError

__all__ = ["Control"]

MAX_REQUEST = 16 << 20


class Control:
    """Serves requests until the supervisor has nothing left to do (`done`)."""

    def __init__(self, fleet: LocalFleet) -> None:
        self.fleet = fleet
        self.done = asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Listen until `done`."""
        opened = self.fleet.folder.listen(CONTROL)
        server = await asyncio.start_unix_server(self._client, sock=opened, limit=MAX_REQUEST)
        async with server:
            await self.done.wait()
            server.close()
            if self._clients:
                await asyncio.wait(self._clients, timeout=5)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a connection's handler always runs in one
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)
        with contextlib.suppress(ConnectionError):
            try:
                line = await reader.readline()
                await self._answer(json.loads(line), reader, writer)
            except (ValueError, ValidationError) as error:
                _send(writer, {"error": {"type": "DeployError", "message": str(error)}})
            finally:
                writer.close()
                await writer.wait_closed()

    async def _answer(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        work = asyncio.ensure_future(self._do(request, writer))
        left = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
        left.cancel()
        try:
            answer = {"result": await work}
        except ErlessError as error:
            answer = {"error": {"type": type(error).__name__, "message": str(error)}}
        except asyncio.CancelledError:
            answer = {"error": {"type": "DeployError", "message": "the client went away"}}
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            message = f"the supervisor failed: {error!r}; see its log"
            answer = {"error": {"type": "DeployError", "message": message}}
        _send(writer, answer)
        if self.fleet.state.current is None and not self.fleet.changing:
            self.done.set()  # nothing is deployed: nothing to supervise

    async def _do(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> Any:
        def report(label: str, done: int, total: int) -> None:
            _send(writer, {"progress": [label, done, total]})

        fleet = self.fleet
        what = request.get("do")
        timeout_s = float(request.get("timeout_s", 600))
        fleet.environment.update(request.get("environment", {}))
        if what == "status":
            return fleet.status()
        if what == "deploy":
            release = ReleaseSpec.model_validate(request["release"])
            settings = StoredState.model_validate(request["settings"])
            done = await cutover.deploy(fleet, release, settings, timeout_s, report)
            return self._deployment(done)
        if what == "rollback":
            done = await cutover.rollback(fleet, request.get("release"), timeout_s, report)
            return self._deployment(done)
        if what == "destroy":
            await fleet.finish(cutover.destroy(fleet))
            self.done.set()
            return {"pid": os.getpid()}
        raise DeployError(f"the supervisor does not know how to {what!r}")

    def _deployment(self, release: ReleaseSpec) -> dict[str, Any]:
        if self.fleet.public is None:
            raise NotDeployedError("nothing is deployed")
        return {"key": release.key, "port": self.fleet.public.getsockname()[1]}


def _send(writer: asyncio.StreamWriter, document: dict[str, Any]) -> None:
    if not writer.is_closing():
        writer.write(json.dumps(document).encode() + b"\n")
