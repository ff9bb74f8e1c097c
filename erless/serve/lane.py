"""The fast lane: what gateway and functions say to each other, byte for byte.

Both ends are ours, so most messages differ in a few numbers only. Here each is a template to fill
in, and a pattern of exactly what the template makes. A message that fits its pattern is
understood without parsing headers and JSON; any other (a client's, or one that a proxy rewrote)
takes the general way, `erless.serve.wire`, and means the same. tests/serve/test_lane.py holds the
two ways against each other.
"""

from __future__ import annotations

import re

__all__ = [
    "ANSWER", "ANSWER_HEAD", "ASK", "REQUEST_HEAD", "ask_pattern", "request_head", "tensor",
]  # fmt: skip

# A request's head: model, authority; then JSON length, body length, milliseconds left, the rest.
_REQUEST_HEAD = (
    b"POST /v2/models/%b/infer HTTP/1.1\r\nhost: %b\r\n"
    b"content-type: application/octet-stream\r\n"
    b"inference-header-content-length: %%d\r\ncontent-length: %%d\r\n"
    b"erless-deadline-ms: %%d\r\n%%b\r\n"
)
REQUEST_HEAD = re.compile(
    rb"POST (/[!->@-~]*) HTTP/1\.1\r\nhost: [!-~]*\r\n"
    rb"content-type: application/octet-stream\r\n"
    rb"inference-header-content-length: (\d{1,9})\r\ncontent-length: (\d{1,9})\r\n"
    rb"erless-deadline-ms: (\d{1,9})\r\n(?:traceparent: [0-9a-f\-]{1,128}\r\n)?\r\n"
)
# An answer's head, as erless.serve.server writes it.
ANSWER_HEAD = re.compile(
    rb"HTTP/1\.1 200 OK\r\ncontent-type: application/octet-stream\r\n"
    rb"content-length: (\d{1,9})\r\ndate: [ -~]*\r\n"
    rb"inference-header-content-length: (\d{1,9})\r\n(?:erless-up-ms: (\d{1,9})\r\n)?\r\n"
)
# An answer's JSON: model, version, digest, output; then datatype, shape, bytes.
ANSWER = (
    b'{"model_name":"%b","model_version":"%b","parameters":{"digest":"%b"},"outputs":'
    b'[{"name":"%b","datatype":"%%b","shape":[%%d],"parameters":{"binary_data_size":%%d}}]}'
)
_TENSOR = b'{"name":"%b","datatype":"%b","shape":[%b],"parameters":{"binary_data_size":%d}}'
# A request's JSON: inputs, output, parameters.
ASK = (
    b'{"inputs":[%b],"outputs":[{"name":"%b","parameters":{"binary_data":true}}],"parameters":{%b}}'
)


def request_head(model: bytes, authority: bytes) -> bytes:
    """The template of a request's head."""
    return _REQUEST_HEAD % (model, authority)


def tensor(name: bytes, datatype: bytes, shape: tuple[int, ...], size: int) -> bytes:
    """The entry of an input whose elements follow the JSON as `size` bytes."""
    return _TENSOR % (name, datatype, b",".join(b"%d" % each for each in shape), size)


def ask_pattern() -> re.Pattern[bytes]:
    """A request to a sparse function, without weights.

    Groups: 32 or 64, ids, their bytes, tables, samples, bytes of the lengths, whether halves.
    """
    text = ASK % (
        rb'{"name":"values","datatype":"INT(32|64)","shape":[(\d{1,9})],'
        rb'"parameters":{"binary_data_size":(\d{1,10})}},'
        rb'{"name":"lengths","datatype":"INT32","shape":[(\d{1,9}),(\d{1,9})],'
        rb'"parameters":{"binary_data_size":(\d{1,10})}}',
        b"partial",
        b'"packed":true(,"half":true)?',
    )
    for plain in (b"{", b"}", b"[", b"]"):
        text = text.replace(plain, b"\\" + plain)
    return re.compile(re.sub(rb"\\d\\\{(1,\d+)\\\}", rb"\\d{\1}", text) + b" *")
