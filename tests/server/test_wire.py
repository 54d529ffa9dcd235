"""Bytes that are no request, or two: the classes of what sets servers apart, each refused.

The table follows the payloads of the http-garden project, and what was measured of the servers
that Python programs mostly run on.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tropilla.server.wire import Chunked, Head, Refused, Sized, body_of, parse_head

H = b"Host: t\r\n"


def head(line: bytes = b"POST / HTTP/1.1", fields: bytes = H) -> Head:
    return parse_head(line + b"\r\n" + fields)


LINES = {
    "a bare line feed": b"GET / HTTP/1.1\nHost: t",
    "a bare carriage return": b"GET / HTTP/1.1\rHost: t",
    "two spaces": b"GET  / HTTP/1.1",
    "a tab": b"GET\t/ HTTP/1.1",
    "a space in front": b" GET / HTTP/1.1",
    "a space behind": b"GET / HTTP/1.1 ",
    "a space in the target": b"GET /a b HTTP/1.1",
    "no version": b"GET /",
    "HTTP/0.9": b"GET / HTTP/0.9",
    "HTTP/1.2": b"GET / HTTP/1.2",
    "HTTP/2": b"PRI * HTTP/2.0",
    "HTTP/11": b"GET / HTTP/11",
    "http in lower case": b"GET / http/1.1",
    "a version of many digits": b"GET / HTTP/1.01",
    "an absolute target": b"GET http://t/ HTTP/1.1",
    "an authority": b"CONNECT t:443 HTTP/1.1",
    "an asterisk that is not asked by OPTIONS": b"GET * HTTP/1.1",
    "a relative target": b"GET v1/models HTTP/1.1",
    "a fragment": b"GET /#a HTTP/1.1",
    "no target": b"GET  HTTP/1.1",
    "NUL in the target": b"GET /\x00 HTTP/1.1",
    "no ASCII in the target": b"GET /\xc3\xa9 HTTP/1.1",
    "a method that is no word": b"G(T / HTTP/1.1",
    "a very long method": b"G" * 33 + b" / HTTP/1.1",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01",
    "nothing": b"",
}
FIELDS = {
    "no Host": b"",
    "two Hosts": H + H,
    "two Hosts in other letters": H + b"hOST: u\r\n",
    "an empty Host": b"Host:\r\n",
    "a Host with a path": b"Host: a/b?\r\n",
    "a Host with a user": b"Host: a@b\r\n",
    "a Host of two": b"Host: a, b\r\n",
    "a Host with a space": b"Host: a b\r\n",
    "a Host with a wrong port": b"Host: a:http\r\n",
    "a line without a colon": H + b"Nothing\r\n",
    "an empty name": H + b": x\r\n",
    "a space before the colon": H + b"Content-Length : 1\r\n",
    "a tab before the colon": H + b"Content-Length\t: 1\r\n",
    "a name in quotes": H + b'"Content-Length": 1\r\n',
    "a folded line": H + b"X: a\r\n b\r\n",
    "a folded first line": b" Host: t\r\n" + H,
    "a bare line feed": H + b"X: a\nContent-Length: 1\r\n",
    "a bare carriage return": H + b"X: a\rContent-Length: 1\r\n",
    "a form feed": H + b"X: a\x0cb\r\n",
    "NUL in a value": H + b"X: a\x00b\r\n",
    "NUL in a name": H + b"Content\x00-Length: 1\r\n",
    "a DEL": H + b"X: a\x7f\r\n",
    "no ASCII in a name": H + b"X\xc3\xa9: 1\r\n",
    "two equal lengths": H + b"Content-Length: 1\r\nContent-Length: 1\r\n",
    "two lengths": H + b"Content-Length: 1\r\nContent-Length: 2\r\n",
    "two lengths in one": H + b"Content-Length: 1, 1\r\n",
    "a length with a sign": H + b"Content-Length: +1\r\n",
    "a negative length": H + b"Content-Length: -1\r\n",
    "an empty length": H + b"Content-Length:\r\n",
    "a length in hex": H + b"Content-Length: 0x1\r\n",
    "a length with an underscore": H + b"Content-Length: 1_0\r\n",
    "a length of other digits": H + "Content-Length: \u0661\r\n".encode(),
    "a huge length": H + b"Content-Length: " + b"9" * 16 + b"\r\n",
    "a length and chunks": H + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
    "chunks and a length": H + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
    "two codings": H + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "an empty coding": H + b"Transfer-Encoding:\r\n",
    "a comma in front of chunked": H + b"Transfer-Encoding: ,chunked\r\n",
    "chunked twice": H + b"Transfer-Encoding: chunked, chunked\r\n",
    "another coding": H + b"Transfer-Encoding: gzip, chunked\r\n",
    "identity": H + b"Transfer-Encoding: identity\r\n",
    "chunked in quotes": H + b'Transfer-Encoding: "chunked"\r\n',
    "chunked with a parameter": H + b"Transfer-Encoding: chunked;a=b\r\n",
    "a vertical tab before chunked": H + b"Transfer-Encoding: \x0bchunked\r\n",
    "101 headers": H + b"X: 1\r\n" * 100,
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_what_is_no_first_line(line: bytes) -> None:
    with pytest.raises(Refused):
        head(line)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_what_are_no_headers(fields: bytes) -> None:
    with pytest.raises(Refused):
        head(fields=fields)


@pytest.mark.parametrize("name", [b"Host", b"Content-Length", b"Transfer-Encoding"])
def test_what_comes_twice_is_named(name: bytes) -> None:
    first = b"" if name == b"Host" else H
    with pytest.raises(Refused, match=f"two headers {name.decode().lower()}"):
        head(fields=first + (name + b": 1\r\n") * 2)


def test_chunks_are_nothing_of_http_1_0() -> None:
    with pytest.raises(Refused):
        head(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked\r\n")
    with pytest.raises(Refused):
        head(b"GET / HTTP/1.0", H + H)
    assert head(b"GET / HTTP/1.0", b"").old


def test_what_is_right_is_read() -> None:
    told = head(
        b"PATCH /a/%2F?b=%20&c HTTP/1.1",
        b"hOsT: my_service.local:8081\r\nX:\t a \xe9\t\r\nx: b\r\n"
        b"Empty:\r\nContent-Length: 007\r\n",
    )
    assert (told.method, told.path, told.query) == ("PATCH", "/a/%2F", "b=%20&c")
    assert told.headers[b"host"] == b"my_service.local:8081"
    assert told.headers[b"x"] == b"a \xe9, b"
    assert told.headers[b"empty"] == b""
    assert (told.length, told.keeps, told.old) == (7, True, False)
    assert head(fields=H + b"Transfer-Encoding: Chunked\r\n").length is None
    assert head(fields=H + b"X: 1\r\n" * 99).length == 0
    assert head(b"OPTIONS * HTTP/1.1").path == "*"


@pytest.mark.parametrize("host", ["t", "127.0.0.1:8081", "[::1]:80", "a.b-c_d~e", "t:"])
def test_a_host(host: str) -> None:
    assert head(fields=f"Host: {host}\r\n".encode()).headers[b"host"] == host.encode()


@pytest.mark.parametrize(
    ("line", "connection", "keeps"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: Close\r\n", False),
        (b"1.1", b"Connection: Upgrade, close\r\n", False),
        (b"1.1", b"Connection: not-close\r\n", True),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
    ],
)
def test_whether_the_connection_stays(line: bytes, connection: bytes, *, keeps: bool) -> None:
    assert head(b"GET / HTTP/" + line, H + connection).keeps is keeps


# Bodies.

CHUNKS = {
    "no size": b"\r\n",
    "no hex": b"g\r\n",
    "a sign": b"+1\r\na\r\n",
    "0x": b"0x1\r\na\r\n",
    "an underscore": b"1_0\r\n",
    "a space in front": b" 1\r\na\r\n",
    "a space behind": b"1 \r\na\r\n",
    "17 digits": b"00000000000000001\r\na\r\n",
    "a size that is none, and never ends": b"1" * 300,
    "a bare line feed behind the size": b"1\na\r\n0\r\n\r\n",
    "a bare line feed in an extension": b"1;a\nb\r\na\r\n",
    "a bare line feed behind the chunk": b"1\r\na\n0\r\n\r\n",
    "more than its size": b"1\r\nab\r\n0\r\n\r\n",
    "other bytes for its line break": b"1\r\naXX0\r\n\r\n",
    "less than its size": b"3\r\na\r\n0\r\n\r\n",
    "an extension of a megabyte": b"1;" + b"a" * 2**20,
    "a trailer that is none": b"0\r\nnothing\r\n\r\n",
    "a folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "a trailer of a megabyte": b"0\r\nX: " + b"a" * 2**20,
    "trailers without an end": b"0\r\n" + b"X: a\r\n" * 10_000 + b"\r\n",
}


@pytest.mark.parametrize("data", CHUNKS.values(), ids=CHUNKS.keys())
@pytest.mark.parametrize("step", [1, 7, 2**21])
def test_what_are_no_chunks(data: bytes, step: int) -> None:
    with pytest.raises(Refused):
        feed(Chunked(), data, step)


def feed(body: Chunked, data: bytes, step: int) -> None:
    for at in range(0, len(data), step):
        body.feed(data[at : at + step])


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=5),
    st.binary(max_size=40),
    st.lists(st.integers(0, 2000), max_size=8),
    st.sampled_from([b"", b";a=b", b" ; x"]),
    st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ:\r\n"]),
)
def test_chunks_are_the_same_however_they_are_cut(
    pieces: list[bytes], rest: bytes, cuts: list[int], extension: bytes, trailer: bytes
) -> None:
    data = b"".join(b"%x%b\r\n%b\r\n" % (len(one), extension, one) for one in pieces)
    data += b"0\r\n" + trailer + b"\r\n" + rest
    body, behind = Chunked(), b""
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        piece = data[at : max(cut, at)]
        behind += piece if body.complete else body.feed(piece)
        at = max(cut, at)
    assert body.complete
    assert (body.take(), behind) == (b"".join(pieces), rest)
    assert body.size == sum(map(len, pieces))


@given(st.binary(max_size=50), st.binary(max_size=20), st.integers(0, 70))
def test_a_body_of_known_length(data: bytes, rest: bytes, cut: int) -> None:
    body = Sized(len(data))
    whole = data + rest
    behind = body.feed(whole[:cut])
    behind += whole[cut:] if body.complete else body.feed(whole[cut:])
    assert body.complete
    assert (body.take(), behind, body.size) == (data, rest, len(data))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_refused(data: bytes) -> None:
    try:
        told = parse_head(data)
    except Refused as error:
        assert error.status in {400, 431, 501}  # noqa: PT017 - either is right
        assert error.message  # noqa: PT017
    else:
        assert body_of(told).size == 0
