"""What clients may send, byte for byte, and the statuses that it is answered with.

A case is a name, the bytes, and the statuses of the answers in order; none where the connection
closes without one. All are sent at once, and then the client closes its half of the connection.
"""

from __future__ import annotations

__all__ = ["CASES"]

H = b"host: x\r\n"
GET = b"GET /a HTTP/1.1\r\n" + H + b"\r\n"


def get(line: bytes = b"GET /a HTTP/1.1", headers: bytes = H) -> bytes:
    """A request without a body."""
    return line + b"\r\n" + headers + b"\r\n"


def post(headers: bytes, body: bytes = b"hello") -> bytes:
    """A request with a body."""
    return b"POST /b HTTP/1.1\r\n" + H + headers + b"\r\n" + body


def chunked(body: bytes, headers: bytes = b"transfer-encoding: chunked\r\n") -> bytes:
    """A request in chunks, and another one behind it."""
    return post(headers, body) + GET


END = b"0\r\n\r\n"
FIVE = b"5\r\nhello\r\n"

CASES: tuple[tuple[str, bytes, tuple[int, ...]], ...] = (
    # the version
    ("HTTP/1.1", get(), (200,)),
    ("HTTP/1.0", get(b"GET /a HTTP/1.0"), (200,)),
    ("HTTP/0.9", get(b"GET /a HTTP/0.9"), (505,)),
    ("HTTP/2.0", get(b"GET /a HTTP/2.0"), (505,)),
    ("HTTP/1.2", get(b"GET /a HTTP/1.2"), (400,)),
    ("HTTP/3.0", get(b"GET /a HTTP/3.0"), (400,)),
    ("HTTP/1", get(b"GET /a HTTP/1"), (400,)),
    ("HTTP/1.", get(b"GET /a HTTP/1."), (400,)),
    ("HTTP/11", get(b"GET /a HTTP/11"), (400,)),
    ("HTTP/1.10", get(b"GET /a HTTP/1.10"), (400,)),
    ("http/1.1", get(b"GET /a http/1.1"), (400,)),
    ("HTTP /1.1", get(b"GET /a HTTP /1.1"), (400,)),
    ("no version", get(b"GET /a"), (505,)),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505,)),
    # Host
    ("no host", get(headers=b""), (400,)),
    ("no host in 1.0", get(b"GET /a HTTP/1.0", b""), (200,)),
    ("an empty host", get(headers=b"host:\r\n"), (200,)),
    ("the same host twice", get(headers=H + H), (400,)),
    ("two hosts", get(headers=H + b"host: y\r\n"), (400,)),
    ("two hosts in 1.0", get(b"GET /a HTTP/1.0", H + H), (400,)),
    ("a host with a port", get(headers=b"host: x:80\r\n"), (200,)),
    ("a host with an empty port", get(headers=b"host: x:\r\n"), (200,)),
    ("a host with a word for a port", get(headers=b"host: x:http\r\n"), (400,)),
    ("a host with a long port", get(headers=b"host: x:1234567\r\n"), (400,)),
    ("an IPv6 host", get(headers=b"host: [::1]:80\r\n"), (200,)),
    ("an IPv6 host without brackets", get(headers=b"host: ::1\r\n"), (400,)),
    ("a host with a space", get(headers=b"host: a b\r\n"), (400,)),
    ("a list of hosts", get(headers=b"host: a, b\r\n"), (400,)),
    ("a host with a user", get(headers=b"host: me@x\r\n"), (400,)),
    ("a host with a path", get(headers=b"host: x/y\r\n"), (400,)),
    ("a quoted host", get(headers=b'host: "x"\r\n'), (400,)),
    ("a host with a high byte", get(headers=b"host: x\xff\r\n"), (400,)),
    ("spaces around the host", get(headers=b"host: \t x \t\r\n"), (200,)),
    ("the host in capitals", get(headers=b"HOST: X\r\n"), (200,)),
    # the request line
    ("an empty line before", b"\r\n" + GET, (200,)),
    ("three empty lines before", b"\r\n\r\n\r\n" + GET, (200,)),
    ("a space before", b" " + GET, (400,)),
    ("two spaces", get(b"GET  /a HTTP/1.1"), (400,)),
    ("a tab between", get(b"GET\t/a\tHTTP/1.1"), (400,)),
    ("a space behind", get(b"GET /a HTTP/1.1 "), (400,)),
    ("no target", get(b"GET HTTP/1.1"), (400,)),
    ("no method", get(b"/a HTTP/1.1"), (400,)),
    ("a small method", get(b"get /a HTTP/1.1"), (400,)),
    ("an unknown method", get(b"FETCH /a HTTP/1.1"), (400,)),
    ("a method with a comma", get(b"GE,T /a HTTP/1.1"), (400,)),
    ("a control character in the target", get(b"GET /\x01 HTTP/1.1"), (400,)),
    ("a high byte in the target", get(b"GET /\xff HTTP/1.1"), (400,)),
    ("a space in the target", get(b"GET /a b HTTP/1.1"), (400,)),
    ("a query", get(b"GET /a?b=c HTTP/1.1"), (200,)),
    ("an absolute target", get(b"GET http://y/a HTTP/1.1"), (200,)),
    ("an absolute target without a path", get(b"GET http://y HTTP/1.1"), (200,)),
    ("an asterisk", get(b"OPTIONS * HTTP/1.1"), (200,)),
    ("CONNECT", get(b"CONNECT x:80 HTTP/1.1"), (400,)),
    ("a line without an end", b"GET /a HTTP/1.1", ()),
    ("a head without an end", b"GET /a HTTP/1.1\r\nhost: x\r\n", ()),
    ("nothing", b"", ()),
    ("only empty lines", b"\r\n\r\n\r\n", ()),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400,)),
    # headers
    ("a space before the colon", get(headers=H + b"a : b\r\n"), (400,)),
    ("no colon", get(headers=H + b"ab\r\n"), (400,)),
    ("no name", get(headers=H + b": b\r\n"), (400,)),
    ("a name with a bracket", get(headers=H + b"a(: b\r\n"), (400,)),
    ("a name with a space", get(headers=H + b"a b: c\r\n"), (400,)),
    ("a name with a high byte", get(headers=H + b"a\xe9: c\r\n"), (400,)),
    ("a folded line", get(headers=H + b"a: b\r\n c\r\n"), (400,)),
    ("a line folded by a tab", get(headers=H + b"a: b\r\n\tc\r\n"), (400,)),
    ("a fold in front of all", get(headers=b" a: b\r\n" + H), (400,)),
    ("CR in a value", get(headers=H + b"a: b\rc\r\n"), (400,)),
    ("NUL in a value", get(headers=H + b"a: b\0c\r\n"), (400,)),
    ("a bell in a value", get(headers=H + b"a: b\x07c\r\n"), (400,)),
    ("DEL in a value", get(headers=H + b"a: b\x7fc\r\n"), (400,)),
    ("a high byte in a value", get(headers=H + b"a: b\xe9\r\n"), (200,)),
    ("a tab in a value", get(headers=H + b"a: b\tc\r\n"), (200,)),
    ("an empty value", get(headers=H + b"a:\r\n"), (200,)),
    ("a value of spaces", get(headers=H + b"a:   \r\n"), (200,)),
    ("lines that end in LF", GET.replace(b"\r\n", b"\n"), (400,)),
    ("one line that ends in LF", get(headers=H + b"a: b\nc: d\r\n"), (400,)),
    ("a head that ends in LF", b"GET /a HTTP/1.1\r\nhost: x\r\n\n", (400,)),
    ("lines that end in CR", GET.replace(b"\r\n", b"\r"), ()),
    ("a head beyond the limit", get(headers=H + b"a: " + b"b" * 20_000 + b"\r\n"), (431,)),
    ("300 headers", get(headers=H + b"a: b\r\n" * 300), (200,)),
    # Content-Length
    ("a body", post(b"content-length: 5\r\n"), (200,)),
    ("an empty body", post(b"content-length: 0\r\n", b""), (200,)),
    ("a body of GET", get(headers=H + b"content-length: 5\r\n") + b"hello", (200,)),
    ("a POST without a body", post(b"", b""), (200,)),
    ("zeros before the length", post(b"content-length: 005\r\n"), (200,)),
    ("spaces around the length", post(b"content-length: \t5 \r\n"), (200,)),
    ("the same length twice", post(b"content-length: 5\r\n" * 2), (400,)),
    ("two lengths", post(b"content-length: 5\r\ncontent-length: 6\r\n"), (400,)),
    ("a list of lengths", post(b"content-length: 5, 6\r\n"), (400,)),
    ("a list of the same length", post(b"content-length: 5, 5\r\n"), (400,)),
    ("a length with a plus", post(b"content-length: +5\r\n"), (400,)),
    ("a length below zero", post(b"content-length: -5\r\n"), (400,)),
    ("a length in hexadecimal", post(b"content-length: 0x5\r\n"), (400,)),
    ("a length with a point", post(b"content-length: 5.0\r\n"), (400,)),
    ("a length with an underscore", post(b"content-length: 0_5\r\n"), (400,)),
    ("two numbers for a length", post(b"content-length: 5 5\r\n"), (400,)),
    ("an empty length", post(b"content-length:\r\n"), (400,)),
    ("a word for a length", post(b"content-length: five\r\n"), (400,)),
    ("a length beyond 64 bits", post(b"content-length: 99999999999999999999\r\n"), (400,)),
    ("a length beyond the limit", post(b"content-length: 99999999\r\n"), (413,)),
    ("a body cut short", post(b"content-length: 9\r\n"), ()),
    ("a body and a request", post(b"content-length: 5\r\n") + GET, (200, 200)),
    ("a longer body", post(b"content-length: 4\r\n") + GET, (200, 400)),
    # Transfer-Encoding
    ("chunks", chunked(FIVE + END), (200, 200)),
    ("chunked in capitals", chunked(FIVE + END, b"Transfer-Encoding: CHUNKED\r\n"), (200, 200)),
    ("no chunk", chunked(END), (200, 200)),
    ("chunks in HTTP/1.0", chunked(FIVE + END).replace(b"1.1", b"1.0", 1), (400,)),
    ("gzip", chunked(FIVE + END, b"transfer-encoding: gzip\r\n"), (400,)),
    ("gzip, chunked", chunked(FIVE + END, b"transfer-encoding: gzip, chunked\r\n"), (501,)),
    ("chunked, gzip", chunked(FIVE + END, b"transfer-encoding: chunked, gzip\r\n"), (400,)),
    ("chunked twice", chunked(FIVE + END, b"transfer-encoding: chunked, chunked\r\n"), (400,)),
    ("two codings", chunked(FIVE + END, b"transfer-encoding: chunked\r\n" * 2), (400,)),
    ("identity", chunked(FIVE + END, b"transfer-encoding: identity\r\n"), (400,)),
    ("an empty coding", chunked(FIVE + END, b"transfer-encoding:\r\n"), (400,)),
    ("xchunked", chunked(FIVE + END, b"transfer-encoding: xchunked\r\n"), (400,)),
    ("a coding with a parameter", chunked(FIVE + END, b"transfer-encoding: chunked;q\r\n"), (400,)),
    ("VT in a coding", chunked(FIVE + END, b"transfer-encoding: \x0bchunked\r\n"), (400,)),
    (
        "chunked and a length",
        chunked(FIVE + END, b"transfer-encoding: chunked\r\ncontent-length: 5\r\n"),
        (400,),
    ),
    (
        "a length and chunked",
        chunked(FIVE + END, b"content-length: 5\r\ntransfer-encoding: chunked\r\n"),
        (400,),
    ),
    # chunks
    ("a size in capitals", chunked(b"A\r\n0123456789\r\n" + END), (200, 200)),
    ("zeros before the size", chunked(b"0005\r\nhello\r\n" + END), (200, 200)),
    ("a space before the size", chunked(b" 5\r\nhello\r\n" + END), (400,)),
    ("a tab before the size", chunked(b"\t5\r\nhello\r\n" + END), (400,)),
    ("a space behind the size", chunked(b"5 \r\nhello\r\n" + END), (200, 200)),
    ("a size in 0x", chunked(b"0x5\r\nhello\r\n" + END), (400,)),
    ("a size with a plus", chunked(b"+5\r\nhello\r\n" + END), (400,)),
    ("a size below zero", chunked(b"-5\r\nhello\r\n" + END), (400,)),
    ("a size with an underscore", chunked(b"0_5\r\nhello\r\n" + END), (400,)),
    ("no size", chunked(b"\r\nhello\r\n" + END), (400,)),
    ("a word for a size", chunked(b"five\r\nhello\r\n" + END), (400,)),
    ("a size beyond 64 bits", chunked(b"f" * 17 + b"\r\nhello\r\n" + END), (400,)),
    ("a size beyond the limit", chunked(b"fffffff\r\nhello\r\n" + END), (413,)),
    ("an extension", chunked(b"5;a=b\r\nhello\r\n" + END), (200, 200)),
    ("a quoted extension", chunked(b'5;a="b c"\r\nhello\r\n' + END), (200, 200)),
    ("a space before an extension", chunked(b"5 ;a=b\r\nhello\r\n" + END), (200, 200)),
    ("CR in an extension", chunked(b"5;a\rb\r\nhello\r\n" + END), (400,)),
    ("LF in an extension", chunked(b"5;a\nb\r\nhello\r\n" + END), (400,)),
    ("NUL in an extension", chunked(b"5;a\0b\r\nhello\r\n" + END), (400,)),
    ("an extension beyond the limit", chunked(b"5;" + b"a" * 9000 + b"\r\nhello\r\n"), (400,)),
    ("a size that ends in LF", chunked(b"5\nhello\r\n" + END), (400,)),
    ("a chunk that ends in LF", chunked(b"5\r\nhello\n" + END), (400,)),
    ("a chunk without an end", chunked(b"5\r\nhello" + END), (400,)),
    ("a longer chunk", chunked(b"5\r\nhello!\r\n" + END), (400,)),
    ("chunks cut short", post(b"transfer-encoding: chunked\r\n", b"5\r\nhel"), ()),
    ("no last chunk", post(b"transfer-encoding: chunked\r\n", FIVE), ()),
    # trailers
    ("a trailer", chunked(FIVE + b"0\r\na: b\r\n\r\n"), (200, 200)),
    ("an empty trailer", chunked(FIVE + b"0\r\na:\r\n\r\n"), (200, 200)),
    ("a trailer without a colon", chunked(FIVE + b"0\r\ngarbage\r\n\r\n"), (400,)),
    ("a trailer without a name", chunked(FIVE + b"0\r\n: b\r\n\r\n"), (400,)),
    ("a space before a trailer's colon", chunked(FIVE + b"0\r\na : b\r\n\r\n"), (400,)),
    ("CR in a trailer", chunked(FIVE + b"0\r\na: b\rc\r\n\r\n"), (400,)),
    ("NUL in a trailer", chunked(FIVE + b"0\r\na: b\0\r\n\r\n"), (400,)),
    ("a folded trailer", chunked(FIVE + b"0\r\na: b\r\n c\r\n\r\n"), (400,)),
    ("a trailer that ends in LF", chunked(FIVE + b"0\r\na: b\n\r\n"), (400,)),
    ("100 trailers", chunked(FIVE + b"0\r\n" + b"a: b\r\n" * 100 + b"\r\n"), (400,)),
    # several requests, and what the connection does
    ("two requests", GET + GET, (200, 200)),
    ("an empty line between", GET + b"\r\n" + GET, (200, 200)),
    ("garbage behind a request", GET + b"garbage\r\n\r\n", (200, 400)),
    ("close", get(headers=H + b"connection: close\r\n") + GET, (200,)),
    ("close, among others", get(headers=H + b"connection: a, Close\r\n") + GET, (200,)),
    ("close behind HTTP/1.0", get(b"GET /a HTTP/1.0") + GET, (200,)),
    (
        "keep-alive in HTTP/1.0",
        get(b"GET /a HTTP/1.0", H + b"connection: keep-alive\r\n") + GET,
        (200, 200),
    ),
    ("keep-alive", get(headers=H + b"connection: keep-alive\r\n") + GET, (200, 200)),
    (
        "an upgrade that is not taken",
        get(headers=H + b"connection: upgrade\r\nupgrade: h2c\r\n") + GET,
        (200, 200),
    ),
    ("Expect", post(b"expect: 100-continue\r\ncontent-length: 5\r\n"), (200,)),
    (
        "Expect, chunked",
        chunked(END, b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n"),
        (100, 200, 200),
    ),
    ("Expect of something else", post(b"expect: money\r\ncontent-length: 5\r\n"), (417,)),
    (
        "Expect in HTTP/1.0",
        post(b"expect: money\r\ncontent-length: 5\r\n").replace(b"1.1", b"1.0", 1),
        (200,),
    ),
)
