"""Drive any erless gateway with Locust: one user is one connection.

    locust -f loadtests/locustfile.py --headless -u 50 -t 30s --host http://127.0.0.1:8080
    locust -f loadtests/locustfile.py --headless -u 64 --host URL --traffic step:50,150,50 \
        --duration 90 --queries m/queries.safetensors --expected predictions.json

Without `--traffic` each user sends its next query when the answer is there (closed loop). With it,
queries arrive by a Poisson process of that rate and latency counts from when a query was due, so a
queue cannot hide. A sample of answers is compared with `--expected`; what the server says about an
answer (degraded, cold start) is counted as requests of that type. A query whose connection ends
before any byte of an answer, as those of a gateway that dies do, is sent once more: it is pure.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import gevent
from geventhttpclient.client import HTTPClient
from geventhttpclient.response import HTTPConnectionClosed
from geventhttpclient.url import URL
from locust import User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from erless.errors import ErlessError, ServeError
from erless.observe.loadtest.drawn_queries import generate
from erless.observe.loadtest.encoded_queries import (
    JSON_LENGTH,
    Answer,
    Body,
    from_file,
    from_graph_file,
    read_answer,
    read_expected,
    within,
)
from erless.observe.loadtest.locust import shapes
from erless.observe.loadtest.served_model import ServedModel, discover
from erless.outbound import ca_bundle

WARM = 8  # queries before the first that is measured
PAUSE_S = 0.1  # of a closed loop after a query that failed: a gateway that is down is not hammered
BLOCK_BYTES = 64 << 10
BODIES_BYTES = 256 << 20  # of different queries
CONNECT_S = 5.0
GRACE_S = 1.0  # beyond the deadline, for the gateway's own 504
FLUSH_EVERY_S = 0.5
ENDED = (HTTPConnectionClosed, ConnectionResetError, BrokenPipeError)


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("erless")
    group.add_argument("--traffic", default="", help="shape (step:50,150) or trace; open loop")
    group.add_argument("--duration", type=float, default=None, help="seconds of a shape")
    group.add_argument("--connect", default="", help="HOST:PORT to connect to, for --host")
    group.add_argument("--ca", default="", help="authorities of an https gateway (PEM)")
    group.add_argument("--queries", default="", help="query file; else queries are drawn")
    group.add_argument("--distinct", type=int, default=64, help="most different queries; 256 MB")
    group.add_argument("--batch", type=int, default=None, help="samples per query")
    group.add_argument("--pooling", type=int, default=None, help="ids per bag, drawn queries")
    group.add_argument("--locality", type=float, default=0.9, help="P of drawn queries")
    group.add_argument("--hotness", default="", help="profile: draw rows as its log had them")
    group.add_argument("--expected", default="", help="output of `erless predict -o json`")
    group.add_argument("--check-every", type=int, default=10, help="compare every n-th answer")
    group.add_argument("--tolerance", type=float, default=1e-5, help="relative, of predictions")
    group.add_argument("--model", default="", help="name, where the server does not say it")
    group.add_argument("--deadline-ms", type=float, default=10_000, help="of one query")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--cold", action="store_true", help="send no queries before the first")
    group.add_argument("--record", default="", help="append one line per query to this file")


def _early(argv: list[str]) -> argparse.Namespace:
    """What decides on the shape class, which Locust looks for before it parses options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--traffic", default=os.environ.get("LOCUST_TRAFFIC", ""))
    parser.add_argument("--duration", type=float, default=None)
    return parser.parse_known_args(argv)[0]


def _stop(error: ErlessError) -> None:
    """Locust ends with the reason and exit code 1, without a traceback."""
    _print_error(error)
    sys.exit(1)


def _print_error(error: ErlessError) -> None:
    """Print past Locust's own stderr, which its log level filters."""
    print(f"error: {error}", file=sys.__stderr__, flush=True)


early = _early(sys.argv[1:])
if early.traffic:
    try:
        Shape = shapes.shape_of(early.traffic, early.duration)
    except ErlessError as reason:
        _stop(reason)


def _bodies(served: ServedModel, options: Any) -> Iterator[Body]:
    """The queries to send, from a file or drawn. Raises QueryError or ArtifactError."""
    if options.queries and served.inputs:
        return from_graph_file(
            Path(options.queries), options.distinct, served.inputs, options.batch
        )
    if options.queries:
        tables = [str(table["name"]) for table in served.tables]
        return from_file(Path(options.queries), options.distinct, options.batch, tables)
    return generate(
        served,
        options.distinct,
        locality=options.locality,
        batch=options.batch,
        pooling=options.pooling,
        seed=options.seed,
        profile=Path(options.hotness) if options.hotness else None,
    )


def _headers(host: str, options: Any, token: str | None) -> dict[str, str]:
    """Headers that every query carries."""
    headers = {
        "Content-Type": "application/octet-stream",
        "erless-deadline-ms": f"{options.deadline_ms:g}",
    }
    if options.connect:
        headers["Host"] = urlsplit(host).netloc
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return headers


class Session:
    """What all users of this process share, made once before the first query."""

    def __init__(self, environment: Environment) -> None:
        options: Any = environment.parsed_options
        host = environment.host or options.host
        if not host:
            raise ServeError("no gateway: give --host http://127.0.0.1:8080")
        token = os.environ.get("ERLESS_TOKEN")
        self.authorities = options.ca or ca_bundle()
        self.served = discover(
            host,
            options.model or None,
            token,
            connect=options.connect,
            authorities=self.authorities,
        )
        self.bodies = within(_bodies(self.served, options), BODIES_BYTES)
        self.expected = None
        if options.expected:
            self.expected = read_expected(Path(options.expected), self.bodies[0].batch)
        self.url = URL(host)
        self.name = urlsplit(host).hostname
        self.deadline_s = options.deadline_ms / 1e3
        if options.connect:
            self.url = URL(f"{urlsplit(host).scheme}://{options.connect}")
        headers = _headers(host, options, token)
        self.headers = [{**headers, JSON_LENGTH: str(body.json_length)} for body in self.bodies]
        self.every = max(1, options.check_every)
        self.tolerance = options.tolerance
        self.sent = 0
        self.record: IO[str] | None = None
        if options.record:
            self.record = Path(options.record).open("a", encoding="utf-8")  # noqa: SIM115
        self.started = self.flushed = math.inf
        self.arrivals: shapes.Arrivals | None = None
        shape = environment.shape_class
        if isinstance(shape, shapes.OpenLoop):
            processes = max(1, options.processes or 1)
            seed = options.seed + (os.getpid() if processes > 1 else 0)
            self.arrivals = shapes.Arrivals(shape.traffic, processes, seed)
        if not options.cold:
            self.warm()

    def warm(self) -> None:
        """A few queries that nobody measures, so that what sleeps is awake when traffic comes."""
        client = self.connect()
        for body, headers in zip(self.bodies[:WARM], self.headers, strict=False):
            try:
                answer = client.post(self.served.path, body.data, headers)
                answer.read()
                if answer.status_code != 200:
                    raise ServeError(f"HTTP {answer.status_code}")
            except Exception as error:  # the load itself will tell; this says when it began
                text = str(error) or type(error).__name__
                print(f"a query before the load: {text}", file=sys.__stderr__, flush=True)
                break
        client.close()

    def begin(self) -> None:
        """Due times count from now."""
        if self.record is not None:
            print(f"# start {time.time():.6f}", file=self.record, flush=True)
        self.started = self.flushed = shapes.now()

    def connect(self) -> HTTPClient:
        """A connection of one user's own; opened by its first query."""
        trust = {"ca_certs": self.authorities} if self.authorities else {}
        return HTTPClient.from_url(
            self.url,
            ssl_options={**trust, "server_hostname": self.name},
            connection_timeout=CONNECT_S,
            concurrency=1,
            block_size=BLOCK_BYTES,
            network_timeout=self.deadline_s + GRACE_S,
        )

    def note(self, due: float, took_s: float, failure: str, error: float, flags: str) -> None:
        """One line of the record: due, seconds, failure, relative error, flags."""
        if self.record is None:
            return
        self.record.write(
            f"{due - self.started:.6f}\t{took_s:.6f}\t{failure}\t{error:.3g}\t{flags}\n"
        )
        if due - self.flushed > FLUSH_EVERY_S:
            self.flushed = due
            self.record.flush()


session: Session | None = None


@events.init.add_listener
def _prepare(environment: Environment, **_: object) -> None:
    """Headless: everything is made before the clock of `--run-time` starts."""
    global session  # noqa: PLW0603 - Locust makes users by class, without arguments
    options: Any = environment.parsed_options
    if options is None or not options.headless or options.master:
        return
    try:
        session = Session(environment)
    except ErlessError as error:
        _stop(error)


@events.test_start.add_listener
def _begin(environment: Environment, **_: object) -> None:
    """A test begins: in the web UI only now is it known against which host."""
    global session  # noqa: PLW0603
    options: Any = environment.parsed_options
    if type(environment.runner).__name__ == "MasterRunner":
        return
    try:
        if session is None or not options.headless:
            session = Session(environment)
    except ErlessError as error:
        environment.process_exit_code = 1
        _print_error(error)
        session = None
        if environment.runner is not None:
            gevent.spawn(environment.runner.quit)
        return
    session.begin()


@events.test_stop.add_listener
def _end(environment: Environment, **_: object) -> None:
    if session is None or session.record is None:
        return
    now = shapes.now()
    while session.arrivals is not None and (at := session.arrivals.take()) is not None:
        due = session.started + at
        if due > now:
            break
        session.note(due, now - due, "not sent", math.nan, "")  # all connections were busy
    session.record.flush()


class GatewayUser(User):
    """One connection to the gateway."""

    @task
    def drive(self) -> None:
        """Send queries until Locust stops the user."""
        if session is None:
            gevent.sleep(1)
            return
        self._client = session.connect()
        while True:
            due = shapes.now()
            if session.arrivals is not None:
                at = session.arrivals.take()
                if at is None:
                    gevent.sleep(3600)  # the shape ends the test
                    continue
                due = session.started + at
                if (wait := due - shapes.now()) > 0:
                    gevent.sleep(wait)
            if not self._query(session, due):
                self._connect_anew(session)  # whatever state the old one was left in
                if session.arrivals is None:
                    gevent.sleep(PAUSE_S)

    def _connect_anew(self, session: Session) -> None:
        self._client.close()
        self._client = session.connect()

    def _exchange(self, session: Session, place: int) -> tuple[Any, bytes, bool]:
        """One exchange: the response, its body, and whether the query was sent twice."""
        path, headers = session.served.path, session.headers[place]
        data = session.bodies[place].data
        try:
            response = self._client.post(path, data, headers)
            again = False
        except ENDED:
            self._connect_anew(session)
            response = self._client.post(path, data, headers)
            again = True
        return response, bytes(response.read()), again

    def _query(self, session: Session, due: float) -> bool:
        """One query; True where it was answered rightly."""
        number = session.sent
        session.sent += 1
        place = number % len(session.bodies)
        body = session.bodies[place]
        failure, error, answer = "", math.nan, None
        length, again = 0, False
        try:
            response, data, again = self._exchange(session, place)
            length = len(data)
            if response.status_code != 200:
                failure = f"HTTP {response.status_code}"
            else:
                mark = response.get(JSON_LENGTH.lower())
                answer = read_answer(data, int(str(mark)) if mark else None)
        except gevent.GreenletExit:
            if session.arrivals is not None:
                session.note(due, shapes.now() - due, "no answer", math.nan, "")
            raise
        except ServeError as reason:
            failure = reason.kind
        except ConnectionRefusedError:
            failure = "refused"
        except TimeoutError:
            failure = "timeout"
        except Exception as reason:
            failure = type(reason).__name__
        took_s = shapes.now() - due
        # shifted by one each round through the bodies, so that every query gets its turn
        checked = (number + number // len(session.bodies)) % session.every == 0
        if answer is not None and session.expected is not None and checked:
            error = session.expected.error(body.index, answer.prediction)
            if error > session.tolerance:
                failure = "wrong prediction"
        self._report(session, took_s, length, failure, answer)
        degraded, cold = (answer.degraded, answer.cold) if answer else (False, False)
        flags = "d" * degraded + "c" * cold + "r" * again
        session.note(due, took_s, failure, error, flags)
        return not failure

    def _report(
        self,
        session: Session,
        took_s: float,
        length: int,
        failure: str,
        answer: Answer | None,
    ) -> None:
        fire = self.environment.events.request.fire
        name = session.served.name
        reason = ServeError(failure) if failure else None
        fire(
            request_type="infer",
            name=name,
            response_time=took_s * 1e3,
            response_length=length,
            exception=reason,
            context={},
            url=session.served.path,
        )
        if answer is None:
            return
        for kind, happened in (("degraded", answer.degraded), ("cold start", answer.cold)):
            if happened:
                fire(
                    request_type=kind,
                    name=name,
                    response_time=took_s * 1e3,
                    response_length=length,
                    exception=None,
                    context={},
                )
