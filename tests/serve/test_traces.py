"""One query is one trace: a receiver of OTLP sees it whole."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.releases import Made, random_query
from tests.serve.functions import Fleet, body_of

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
