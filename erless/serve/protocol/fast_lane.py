"""The fast lane: what gateway and functions say to each other, byte for byte.

Both ends are ours, so most messages differ in a few numbers only. Here each is a form, in which %d
is a number and %s a word, to fill in and to compare with. A message that has its form is
understood without parsing headers and JSON; any other (a client's, or one that a proxy rewrote)
takes the general way, `erless.serve.protocol.infer`, and means the same. The tests hold the two
ways against each other.

A sparse function fills in and compares in C (kernels/fast_lane/fast_path.c), so that a request
becomes an answer without a Python object in between. The gateway writes its requests to shards and
adds up their answers in C as well (kernels/fast_lane/shard_channel.c).
"""

from __future__ import annotations

__all__ = [
    "ANSWER",
    "LONGEST_MS",
    "REQUEST",
    "answer_forms",
    "head_forms",
    "request_form",
    "request_forms",
    "request_head",
    "secret_prefix",
    "tensor",
]

LONGEST_MS = 3_600_000  # that a deadline may be away

# A request's head: model, the secret's line, authority; then JSON length, body length,
# milliseconds left, the rest.
_REQUEST_HEAD = (
    b"POST /v2/models/%b/infer HTTP/1.1\r\n%bhost: %b\r\n"
    b"content-type: application/octet-stream\r\n"
    b"inference-header-content-length: %%d\r\ncontent-length: %%d\r\n"
    b"erless-deadline-ms: %%d\r\n%%b\r\n"
)
# An answer's head, as the HTTP server writes it: body length, date, JSON length, the rest.
_ANSWER_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %%d\r\n"
    b"date: %%s\r\ninference-header-content-length: %%d\r\n%b\r\n"
)
# An answer's JSON: model, version, digest, output; then datatype, shape, bytes.
ANSWER = (
    b'{"model_name":"%b","model_version":"%b","parameters":{"digest":"%b"},"outputs":'
    b'[{"name":"%b","datatype":"%%b","shape":[%%d],"parameters":{"binary_data_size":%%d}}]}'
)
_TENSOR = b'{"name":"%b","datatype":"%b","shape":[%b],"parameters":{"binary_data_size":%d}}'
# A request's JSON: inputs, output, parameters.
REQUEST = (
    b'{"inputs":[%b],"outputs":[{"name":"%b","parameters":{"binary_data":true}}],"parameters":{%b}}'
)


def secret_prefix(model: bytes) -> bytes:
    """What a request to `model` with a secret begins with, up to the secret."""
    return b"POST /v2/models/%b/infer HTTP/1.1\r\nerless-secret: " % model


def request_head(model: bytes, authority: bytes, secret: bytes | None = None) -> bytes:
    """The template of a request's head; "%" in `authority` has to be written twice."""
    line = b"" if secret is None else b"erless-secret: %b\r\n" % secret
    return _REQUEST_HEAD % (model, line, authority)


def head_forms(
    model: bytes, authority: bytes = b"%s", secret: bytes | None = None
) -> tuple[bytes, bytes]:
    """Heads of requests to `model`, at any authority: without a trace, and with one."""
    head = request_head(model, authority, secret)
    return head.replace(b"%b", b""), head.replace(b"%b", b"traceparent: %s\r\n")


def tensor(name: bytes, datatype: bytes, shape: tuple[int, ...], size: int) -> bytes:
    """The entry of an input whose elements follow the JSON as `size` bytes."""
    return _TENSOR % (name, datatype, b",".join(b"%d" % size for size in shape), size)


def request_form(id_bytes: int, float16_partials: bool) -> bytes:
    """The form of a request to a sparse function, without weights.

    Numbers: ids, their bytes, tables, samples, bytes of the lengths.

    Args:
        id_bytes: bytes of an id, 4 or 8.
        float16_partials: whether partials are wanted in float16.
    """
    parameters = b'"packed":true,"half":true' if float16_partials else b'"packed":true'
    entry = b'{"name":"%b","datatype":"INT%d","shape":[%b],"parameters":{"binary_data_size":%%d}}'
    inputs = entry % (b"values", 8 * id_bytes, b"%d") + b"," + entry % (b"lengths", 32, b"%d,%d")
    return REQUEST % (inputs, b"partial", parameters)


def request_forms(float16_partials: tuple[bool, ...] = (False, True)) -> tuple[bytes, ...]:
    """All request forms: int32, then int64 ids; for partials in float32, then in float16."""
    return tuple(
        request_form(id_bytes, float16) for float16 in float16_partials for id_bytes in (4, 8)
    )


def answer_forms(digest: bytes) -> tuple[tuple[bytes, bytes], bytes, bytes]:
    """Answers of the sparse function that serves `digest`.

    Two heads, without and with the milliseconds since it got ready (numbers: body length, JSON
    length, these); JSON for partials in float32; in float16 (numbers: elements, bytes).
    """
    text = ANSWER % (b"shard", digest[:12], digest, b"partial")
    return (
        (_ANSWER_HEAD % b"", _ANSWER_HEAD % b"erless-up-ms: %d\r\n"),
        text.replace(b"%b", b"FP32"),
        text.replace(b"%b", b"FP16"),
    )
