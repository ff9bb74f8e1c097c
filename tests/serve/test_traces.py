"""One query is one trace: a receiver of OTLP sees it whole."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.context import Context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from erless.dlrm.embedding import Combiner
from erless.dlrm.rows import Routing
from erless.http.client.endpoint import Endpoint
from erless.serve import spans
from erless.serve.gateway.remote import RemoteShard
from erless.serve.logs import Log
from erless.serve.settings import Settings
from erless.serve.traces import open_traces, trace_id
from erless.specs.routes import TableRoute
from tests.releases import Made, random_query
from tests.serve.fake_shard import FakeShard
from tests.serve.functions import Fleet, body_of
from tests.serve.protocol.test_fast_lane import shards_slices, stored_ids

WAIT_S = 60.0
ROOT = Path(__file__).parents[2]
SERVER, CLIENT = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT


class Receiver:
    """A collector: keeps every span, with the name of the service that sent it."""

    def __init__(self) -> None:
        spans = self.spans = list[tuple[str, Span]]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    values = {each.key: each.value for each in resource.resource.attributes}
                    service = values["service.name"].string_value
                    for scope in resource.scope_spans:
                        spans.extend((service, span) for span in scope.spans)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_request(self, code: object = "-", size: object = "-") -> None:
                """Stay silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def of(self, trace: str, count: int) -> list[tuple[str, Span]]:
        """Wait until `count` spans of a trace have come."""
        deadline = time.monotonic() + WAIT_S
        while True:
            found = [each for each in self.spans if each[1].trace_id.hex() == trace]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def traced(
    receiver: Receiver, packed_release: Made, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    every = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
    }
    folder = tmp_path_factory.mktemp("traced")
    with Fleet(packed_release, folder, dense=True, every=every) as fleet:
        yield fleet


def ask(fleet: Fleet, traceparent: str, seed: int = 1) -> int:
    query = random_query(fleet.made.model, seed, 40)
    status, _ = fleet.gateway.post(
        "/v2/models/small/infer", body_of(query), traceparent=traceparent
    )
    return status


def test_a_query_is_one_trace(traced: Fleet, receiver: Receiver) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    assert ask(traced, f"00-{trace}-{parent}-01") == 200
    shards = len(traced.shards)
    found = receiver.of(trace, 2 * shards + 3)
    (gateway,) = [
        span for service, span in found if service == "erless-gateway" and span.kind == SERVER
    ]
    assert gateway.parent_span_id.hex() == parent
    calls = {span.span_id: span for _, span in found if span.kind == CLIENT}
    assert {span.name for span in calls.values()} == {
        *(f"shard {name}" for name in traced.shards),
        "the dense function",
    }
    assert all(span.parent_span_id == gateway.span_id for span in calls.values())
    behind = [(service, span) for service, span in found if span.parent_span_id in calls]
    assert sorted(service for service, _ in behind) == ["erless-dense"] + ["erless-sparse"] * shards
    for _, span in behind:
        call = calls[span.parent_span_id]
        assert span.kind == SERVER
        assert call.start_time_unix_nano <= span.start_time_unix_nano <= call.end_time_unix_nano


def test_what_the_client_does_not_sample_is_not_recorded(traced: Fleet, receiver: Receiver) -> None:
    assert ask(traced, f"00-{'1' * 32}-{'2' * 16}-00") == 200
    assert ask(traced, "no trace context") == 200  # and the sampler wants no trace of its own
    before = len(receiver.spans)
    assert ask(traced, f"00-{'3' * 32}-{'4' * 16}-01") == 200
    receiver.of("3" * 32, 2 * len(traced.shards) + 3)
    assert {span.trace_id.hex() for _, span in receiver.spans[before:]} == {"3" * 32}


class Overheard(FakeShard):
    """Passes everything on, and remembers the headers of infer calls."""

    def __init__(self, real_port: int) -> None:
        self.heads: list[dict[str, str]] = []
        super().__init__(real_port)

    def _answer(
        self, client: socket.socket, path: str, headers: dict[str, str], body: bytes
    ) -> bool:
        if body:
            self.heads.append(headers)
        return super()._answer(client, path, headers, body)


def test_shards_are_told_nothing_of_traces_where_a_query_is_not_sampled(
    traced: Fleet, receiver: Receiver
) -> None:
    body = body_of(random_query(traced.made.model, 1, 40))
    with Overheard(traced.shards["cold"].port) as shard:
        urls = {**traced.urls, traced.made.release.shard("cold").digest: shard.url}
        gateway = traced.start_gateway(urls).ready()
        assert gateway.post("/v2/models/small/infer", body)[0] == 200
        count = len(shard.heads)
        trace = f"00-{'c' * 32}-{'7' * 16}-01"
        assert gateway.post("/v2/models/small/infer", body, traceparent=trace)[0] == 200
    receiver.of("c" * 32, 2 * len(traced.shards) + 3)
    assert 0 < count < len(shard.heads)
    for unsampled in shard.heads[:count]:
        for sampled in shard.heads[count:]:
            assert sampled.keys() - unsampled.keys() == {"traceparent"}
            assert unsampled.keys() < sampled.keys()


def test_events_faults_and_log_lines(traced: Fleet, receiver: Receiver) -> None:
    """Default vectors for a shard that is not there, then a failure without them."""
    gone = "http://127.0.0.1:1"
    urls = {**traced.urls, traced.made.release.shard("cold").digest: gone}
    every = traced._every
    lenient = traced.start_gateway(urls, ERLESS_COLD_MISS="default").ready()
    strict = traced.start_gateway(urls).ready()
    assert every["OTEL_EXPORTER_OTLP_ENDPOINT"]
    body = body_of(random_query(traced.made.model, 1, 40))
    for gateway, trace, status in ((lenient, "5" * 32, 200), (strict, "6" * 32, 502)):
        answer = gateway.post(
            "/v2/models/small/infer", body, traceparent=f"00-{trace}-{'7' * 16}-01"
        )
        assert answer[0] == status, answer
        found = receiver.of(trace, 3)
        deadline = time.monotonic() + WAIT_S
        while not any(span.name == "shard cold" for _, span in found):
            assert time.monotonic() < deadline
            found = receiver.of(trace, len(found) + 1)
        cold = next(span for _, span in found if span.name == "shard cold")
        if status == 200:
            assert [event.name.partition(":")[0] for event in cold.events] == ["degraded"]
        else:
            assert "no connection" in cold.status.message and cold.status.code == 2
    event = strict.event("a query was not answered")
    assert event["trace_id"] == "6" * 32 and event["kind"] == "shard"


def shard_requests(traced: Fleet, *traces: str | None) -> bytes:
    """Requests to shard `frozen` in the fast lane's form, each with its trace or none."""
    shard, slices = traced.made.release.shard("frozen"), shards_slices(traced)
    specs = [each.table for each in slices]
    routes = [TableRoute.of(np.zeros(spec.rows, np.uint8)) for spec in specs]
    routing = Routing(specs, routes, [range(len(specs))])
    lengths = np.zeros((len(specs), 1), np.int32)
    lengths[0] = 2
    buckets = routing.bucketize(np.array(stored_ids(traced)[:2], np.int32), lengths)

    async def build() -> bytes:
        remote = RemoteShard(
            0,
            "frozen",
            shard.digest,
            Endpoint("http://shard", 1, lambda: None),
            places=Combiner(specs, [range(len(specs))]).places(0),
            float16_partials=False,
        )
        requests = [remote.request(buckets, 5000, t.encode() if t else None) for t in traces]
        return b"".join(bytes(each) for request in requests for each in request)

    return asyncio.run(build())


def test_the_fast_lane_records_what_is_sampled_and_nothing_beside_it(
    traced: Fleet, receiver: Receiver
) -> None:
    """Small requests that come together: only the last one's trace is sampled."""
    trace, unsampled = "8" * 32, "9" * 32
    message = shard_requests(
        traced, None, f"00-{unsampled}-{'7' * 16}-00", f"00-{trace}-{'7' * 16}-01"
    )
    with socket.create_connection(("127.0.0.1", traced.shards["frozen"].port)) as client:
        client.sendall(message)
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 3:
            answers += client.recv(1 << 16)
    ((service, span),) = receiver.of(trace, 1)
    assert (service, span.name, span.kind) == ("erless-sparse", "infer", SERVER)
    assert span.parent_span_id.hex() == "7" * 16
    assert span.start_time_unix_nano < span.end_time_unix_nano
    assert ask(traced, f"00-{'a' * 32}-{'7' * 16}-01") == 200
    receiver.of("a" * 32, 2 * len(traced.shards) + 3)
    assert not any(span.trace_id.hex() == unsampled for _, span in receiver.spans)
    assert sum(span.trace_id.hex() == trace for _, span in receiver.spans) == 1


def test_the_sampler_takes_its_share_of_new_traces(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A span is only made for a trace that is sampled, and has the id that was looked at."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    url = f"http://127.0.0.1:{receiver.server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    settings = Settings("gateway", "", "", otlp_endpoint=url)
    traces = open_traces(settings, Log("info"))
    assert traces is not None
    spans = [traces.begin("infer", None) for _ in range(2000)]
    ids = [trace_id(span.traceparent) for span in spans if span is not None]
    assert 350 < len(ids) < 650
    assert len(set(ids)) == len(ids)
    assert all(int(each[16:], 16) < 1 << 62 for each in ids)  # a quarter of the 64 low bits
    assert traces.begin("infer", f"00-{'b' * 32}-{'7' * 16}-00".encode()) is None
    assert traces.begin("infer", f"00-{'b' * 32}-{'7' * 16}-01".encode()) is not None
    for span in spans:
        if span is not None:
            span.end()
    traces.close()
    assert receiver.of(ids[-1], 1)


@pytest.mark.parametrize(
    "sampler",
    [
        f"{by_parent}{root}"
        for by_parent in ("", "parentbased_")
        for root in ("always_on", "always_off", "traceidratio")
    ],
)
def test_the_samplers_decide_as_in_the_sdk(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the SDK reads from its variables; what a client has not sampled stays out of it."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.3")
    traces = open_traces(
        Settings("gateway", "", "", otlp_endpoint="http://127.0.0.1:9"), Log("info")
    )
    assert traces is not None
    provider, draw = TracerProvider(shutdown_on_exit=False), random.Random(1)
    for number in [draw.getrandbits(128) for _ in range(200)]:
        monkeypatch.setattr(spans, "_random_id", lambda bits, number=number: number % (1 << bits))
        decided = provider.sampler.should_sample(Context(), number, "infer").decision
        wanted = decided is Decision.RECORD_AND_SAMPLE
        span = traces.begin("infer", None)
        assert (span is not None) is wanted
        assert span is None or trace_id(span.traceparent) == f"{number:032x}"
        for flags in ("01", "03"):
            parent = f"00-{number:032x}-{'7' * 16}-{flags}"
            remote = TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())
            wanted = provider.get_tracer("here").start_span("infer", remote).is_recording()
            span = traces.begin("infer", parent.encode())
            assert (span is not None) is wanted
            if span is not None:
                assert span.traceparent.startswith(parent.encode()[:36])
                assert span.traceparent.endswith(flags.encode())
        assert traces.begin("infer", f"00-{number:032x}-{'7' * 16}-00".encode()) is None


def test_the_sdk_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    settings = Settings("gateway", "", "", otlp_endpoint="http://127.0.0.1:9")
    assert open_traces(settings, Log("info")) is None


def test_the_library_is_not_imported_without_a_collector() -> None:
    code = (
        "import sys, erless.serve.process.process, erless.serve.gateway.gateway\n"
        "from erless.serve.settings import Settings\n"
        "from erless.serve.logs import Log\n"
        "from erless.serve.traces import open_traces\n"
        "assert open_traces(Settings('gateway', '', ''), Log('info')) is None\n"
        "print(json.dumps([m for m in sys.modules if m.startswith('opentelemetry')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import json\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == []
