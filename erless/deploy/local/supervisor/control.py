"""The supervisor's control socket: JSON lines over the unix socket `run/control`.

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
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from erless.deploy.local.supervisor import cutover
from erless.deploy.local.supervisor.fleet import LocalFleet
from erless.deploy.local.supervisor.folder.state_folder import CONTROL
from erless.deploy.local.supervisor.spec import ReleaseSpec, StoredState
from erless.errors import DeployError, ErlessError, NotDeployedError

__all__ = ["Control"]

MAX_REQUEST = 16 << 20
LOOK_S = 0.5  # the socket is looked for so often
IDLE_S = 5.0  # a supervisor with nothing to do ends after so long


class Control:
    """Serves requests until the supervisor has nothing left to do (`done`)."""

    def __init__(self, fleet: LocalFleet) -> None:
        self.fleet = fleet
        self.done = asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()
        self._busy_s = asyncio.get_running_loop().time()

    async def serve(self) -> None:
        """Answer requests until `done` is set."""
        server = await self._listen()
        while not self.done.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.done.wait(), LOOK_S)
            if not self.fleet.folder.has_socket(CONTROL) and not self.done.is_set():
                server.close()  # somebody removed it
                server = await self._listen()
            if self._idle() or not self.fleet.folder.owned:
                self.done.set()  # who removes the folder has removed the deployment
        server.close()
        if self._clients:
            await asyncio.wait(self._clients, timeout=5)

    async def _listen(self) -> asyncio.Server:
        opened = self.fleet.folder.listen(CONTROL)
        return await asyncio.start_unix_server(self._client, sock=opened, limit=MAX_REQUEST)

    def _idle(self) -> bool:
        """Nothing is deployed, and whoever started this supervisor for that went away."""
        loop = asyncio.get_running_loop()
        if self._clients or self.fleet.changing or self.fleet.state.current is not None:
            self._busy_s = loop.time()
        return loop.time() - self._busy_s > IDLE_S

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
        client_left = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({work, client_left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            self.fleet.abandoned |= self.fleet.owner is work
            work.cancel()
        client_left.cancel()
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
        verb = request.get("do")
        timeout_s = float(request.get("timeout_s", 600))
        fleet.environment.update(request.get("environment", {}))
        questions: dict[str, Callable[[], Any]] = {
            "ping": lambda: {"pid": os.getpid()},
            "status": fleet.status,
            "replicas": fleet.replicas,
            "add": lambda: fleet.add(str(request["function"]), float(request["seconds"])),
        }
        if verb in questions:
            return questions[verb]()
        if verb == "deploy":
            release = ReleaseSpec.model_validate(request["release"])
            settings = StoredState.model_validate(request["settings"])
            done = await cutover.deploy(fleet, release, settings, timeout_s, report)
            return self._deployment(done)
        if verb == "rollback":
            done = await cutover.rollback(fleet, request.get("release"), timeout_s, report)
            return self._deployment(done)
        if verb == "destroy":
            await fleet.finish(self._destroy())
            return {"pid": os.getpid()}
        raise DeployError(f"the supervisor does not know how to {verb!r}")

    async def _destroy(self) -> None:
        await cutover.destroy(self.fleet)
        self.done.set()

    def _deployment(self, release: ReleaseSpec) -> dict[str, Any]:
        if self.fleet.public is None:
            raise NotDeployedError("nothing is deployed")
        return {"key": release.key, "port": self.fleet.public.getsockname()[1]}


def _send(writer: asyncio.StreamWriter, document: dict[str, Any]) -> None:
    if not writer.is_closing():
        writer.write(json.dumps(document).encode() + b"\n")
