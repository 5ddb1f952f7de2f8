"""Malformed requests, made from a seed: wrong bodies, headers, paths and chunks, and senders that misbehave.

    for request in malformed(random.Random(0), 300):
        status, body = exchange(port, request, latest=15.0)
        assert status in request.right

Each knows which statuses are right for it; 0 stands for a connection that is closed without a response. Knows no server: the
students and the key that it names are given to one by the tests.
"""

from __future__ import annotations

import base64
import json
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.serve.conftest import T5
from tests.serve.running import QUESTION

KEY = "a-long-random-word"
CHAT, COMPLETION, ANSWER = "/v1/chat/completions", "/v1/completions", "/v1/answer"
POSTS = (CHAT, COMPLETION, ANSWER)
CLOSED = 0
PAUSE = 0.05  # seconds between the pieces of a slow sender
DEEP = 100_000
WHOLE: dict[str, dict[str, object]] = {
    CHAT: {"model": T5, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4, "user": "me"},
    COMPLETION: {"model": T5, "prompt": QUESTION, "max_tokens": 4},
    ANSWER: {"model": T5, "question": QUESTION},
}
EVERYWHERE: dict[str, tuple[object, ...]] = {
    "model": (1, [], {}, True, "nobody", "", "../../etc/passwd", "x" * 5000),
    "stream": ("yes", 1, []),
    "né": (1, [], "x"),
    "x" * 300: (1,),
    "__class__": ({},),
}
WRONG: dict[str, dict[str, tuple[object, ...]]] = {
    CHAT: {
        "messages": (
            "x", 5, [], {}, [1], [[]], [None], [{"role": 1}], [{"role": "user"}], [{"role": "user", "content": 5}],
            [{"role": "user", "content": " \n"}], [{"role": "system", "content": "x"}], [{"role": "user", "content": [{}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
            [{"role": "user", "content": "x", "tool_calls": []}], [{"content": "x"}] * 1000,
        ),
        "temperature": ("1", -1, 2.1, 1e308, [], True, 10**400),
        "n": (0, 17, 1.5, "2", True, 10**30),
        "seed": (2**64, "x", 1.5, [1]),
        "max_tokens": (0, -1, 1.5, "5", 10**30, {}),
        "max_completion_tokens": (0, "x"),
        "stop": (5, [""], ["a"] * 5, [1], {}),
        "logprobs": ("x", 2, []),
        "top_logprobs": (5, "x"),
        "top_p": (0.5, "x", []),
        "stream_options": (1, [], {"include_usage": True}),
        "tools": ([{}], {"a": 1}, [{"type": "function", "function": {"name": "x"}}]),
        "response_format": ({"type": "json_schema"}, {"type": 1}, "json", {"type": "text", "x": 1}),
        "logit_bias": ({"50256": -100}, [1]),
        "mmedge": (1, [], {"x": 1}, {"explain": 1}, {"abstain_below": 2}, {"choices": ["a"]}, {"choices": [1]}),
        "question": (QUESTION,),
    },
    COMPLETION: {
        "prompt": (1, [], {}, [1], [""], "", [[1, 2]], ["x"] * 17, [QUESTION, " "]),
        "echo": (True, 1),
        "suffix": ("x",),
        "best_of": (2,),
        "logprobs": (5, "x", [1]),
        "messages": ([],),
    },
    ANSWER: {
        "question": (1, [], {}, "", "\t", True),
        "explain": ("yes", 1),
        "abstain_below": (2, -1, "x", True),
        "abstain_field_below": (1.5, "x", [0.5], {"name": 2}, {"name": None}),
        "max_withheld_by_field": (0.5, "x", [0.5], {"name": 2}, {"name": None}),
        "choices": (["a", "b"], [1]),
        "messages": ([],),
    },
}  # fmt: skip
NOT_JSON = (
    b"", b" ", b"1", b"null", b"[]", b'"x"', b"true", b"{", b"}", b"{}{}", b"{'model': 1}", b'{"model": 1,}', b"//\n{}", b"\x00",
    b'{"a": nan}', b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 01}', b'{"a": 1e}', b'{"a": "\t"}',
    b'{"a": "\\x41"}', b'{"a": "\\u12"}',
    b'{"a": 1' + b"0" * 5000 + b"}", b'{"a": "' + b"x" * 50_000, b"{" + b'"a":{' * 500, b"\xff\xfe{}", b"\xef\xbb\xbf{}",
    b"[" * DEEP, b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP, b"-" * DEEP, b"1" * DEEP,
)  # fmt: skip
PATHS = (
    "/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd", "/..%252f..%252fetc%252fpasswd",
    "/%c0%ae%c0%ae/etc/passwd", "/..\\..\\etc\\passwd", "/%00", "/v1/models/%00", "/v1/models/../../etc/passwd", "//etc/passwd",
    "/v1/models/%2e%2e%2f%2e%2e%2fkeys", "/v1/models/" + "a/" * 5000, "/" + "%41" * 8000, "/" + "a" * 20_000, "/static/../keys",
    "/page.html", "/favicon.ico", "/.git/config", "/.env", "/manifest.json", "/v1", "/v1/", "/v1//models", "/V1/models",
    "/v1/models%20", "/v1/chat/completions/", "/v1/answer;x=1", "/%ff%fe", "/%", "/%zz", "/metrics/..", "/healthz/../metrics",
    "file:///etc/passwd",
    "http://localhost/v1/models", "http://169.254.169.254/latest/meta-data", "*", "/docs", "/openapi.json",
)  # fmt: skip


@dataclass(frozen=True)
class Malformed:
    """One request, and how it is sent.

    Attributes:
        kind: What is wrong with it.
        sent: Its bytes, as far as they are sent at once.
        right: The statuses that are right.
        drip: Sent behind it again and again, until the server has had enough.
        half_closed: Whether the sender then closes its half of the connection.
        leaves_after: Bytes of the response after which the sender is gone; None for one that reads all of it.
    """

    kind: str
    sent: bytes
    right: frozenset[int]
    drip: bytes = b""
    half_closed: bool = False
    leaves_after: int | None = None


def malformed(chance: random.Random, count: int) -> Iterator[Malformed]:
    """Yield malformed requests."""
    families, weights = zip(*FAMILIES, strict=True)
    for family in chance.choices(families, weights, k=count):
        yield family(chance)


def head(path: str, *lines: str, method: str = "POST", key: str | None = KEY) -> bytes:
    """Return the head of a request, with a key."""
    given = [] if key is None else [f"Authorization: Bearer {key}"]
    first = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *given]
    return "\r\n".join([*first, *lines, "", ""]).encode("latin-1")


def posted(path: str, body: bytes, *lines: str) -> bytes:
    """Return a request with a body."""
    return head(path, f"Content-Length: {len(body)}", *lines) + body


def _whole(path: str, **changes: object) -> bytes:
    return json.dumps(WHOLE[path] | changes).encode()


def _right(*statuses: int) -> frozenset[int]:
    return frozenset(statuses)


# ------------------------------------------------------------------------------------------------------------- bodies


def _field(chance: random.Random) -> Malformed:
    """One field has a wrong value, or should not be there."""
    path = chance.choice(POSTS)
    fields = WRONG[path] | EVERYWHERE
    name = chance.choice(list(fields))
    value = chance.choice(fields[name])
    return Malformed(f"field {name[:20]}", posted(path, _whole(path, **{name: value})), _right(400, 404))


def _not_json(chance: random.Random) -> Malformed:
    return Malformed("not JSON", posted(chance.choice(POSTS), chance.choice(NOT_JSON)), _right(400))


def _cut_off(chance: random.Random) -> Malformed:
    """Its JSON ends too early, or something follows it."""
    path = chance.choice(POSTS)
    body = _whole(path)
    short = body[: chance.randrange(len(body))] if chance.random() < 0.8 else body + chance.choice([b"}", b"{}", b"\x00", b"x"])
    return Malformed("cut off", posted(path, short), _right(400))


def _nested(chance: random.Random) -> Malformed:
    """A field holds lists or objects in one another."""
    path, depth = chance.choice(POSTS), chance.choice([10, 100, 300, 900, 1000, 5000, DEEP])
    opens, closes = chance.choice([(b"[", b"]"), (b'{"a":', b"}")])
    inner = opens * depth + b"1" + closes * depth
    names = {CHAT: ["messages", "tools", "mmedge", "stop", "n"], COMPLETION: ["prompt", "stop"], ANSWER: ["question", "choices"]}
    name = chance.choice(names[path])
    body = _whole(path, **{name: "HERE"}).replace(b'"HERE"', inner)
    return Malformed(f"{depth} deep in {name}", posted(path, body), _right(400))


def _surrogate(chance: random.Random) -> Malformed:
    """Half of a character beyond 16 bits, which no text can hold."""
    path, half = chance.choice(POSTS), chance.choice([b"\\ud800", b"\\udfff", b"\\uDC00\\uD800", b"\\ud83d\\u0041"])
    place = chance.choice(["key", "model", "text", "user", "stop"])
    if place == "key":
        body = _whole(path, HERE=1).replace(b"HERE", half)
    elif place == "model":
        body = _whole(path, model="HERE").replace(b"HERE", half)
    elif place == "text":
        body = _whole(path).replace(b"Ann has", b"Ann has " + half, 1)
    else:
        body = _whole(path, **{place: "HERE"}).replace(b"HERE", half)
    return Malformed(f"surrogate in {place}", posted(path, body), _right(400))


def _twice(chance: random.Random) -> Malformed:
    """A name stands twice in one object."""
    path = chance.choice(POSTS)
    body = _whole(path)
    name = chance.choice(list(WHOLE[path]))
    again = json.dumps({name: chance.choice([WHOLE[path][name], 1, "x"])}).encode()
    return Malformed("a name twice", posted(path, again[:-1] + b", " + body[1:]), _right(400))


def _encoded(chance: random.Random) -> Malformed:
    """Its text is not UTF-8."""
    path = chance.choice(POSTS)
    text = _whole(path).decode().replace("Ann", "Änn€")
    encoding = chance.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp1252", "utf-7"])
    right = _right(200, 400) if encoding == "utf-7" else _right(400)  # whose bytes are ASCII
    return Malformed(encoding, posted(path, text.encode(encoding)), right)


def _flipped(chance: random.Random) -> Malformed:
    """Some bytes are others; by chance it is whole."""
    path = chance.choice(POSTS)
    body = bytearray(_whole(path))
    for _ in range(chance.randint(1, 4)):
        body[chance.randrange(len(body))] = chance.randrange(256)
    return Malformed("flipped", posted(path, bytes(body)), _right(200, 400, 404))


def _noise(chance: random.Random) -> Malformed:
    return Malformed("noise", posted(chance.choice(POSTS), chance.randbytes(chance.randrange(2000))), _right(400))


# ------------------------------------------------------------------------------------------------------------ headers


def _length(chance: random.Random) -> Malformed:
    """The length of the body is no number, or there are several."""
    path = chance.choice(POSTS)
    body = _whole(path)
    size = len(body)
    lines = chance.choice([
        ["Content-Length: -1"], ["Content-Length: x"], ["Content-Length: 0x10"], ["Content-Length: +5"], ["Content-Length: 1_0"],
        [f"Content-Length: {size}, {size + 1}"], [f"Content-Length: {size}", f"Content-Length: {size + 1}"], ["Content-Length: "],
        [f"Content-Length : {size}"], ["Content-Length: " + "9" * 5000], [f"Content-Length: {size}", "Content-Length: 0"],
    ])  # fmt: skip
    return Malformed(lines[-1][:40], head(path, *lines) + body, _right(400, 413))


def _smuggled(chance: random.Random) -> Malformed:
    """A second request may hide in the body of the first, for one who reads its length otherwise."""
    hidden = head("/v1/models", method="GET", key=None)
    body = b"0\r\n\r\n" + hidden
    lines = chance.choice([
        [f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"], ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Transfer-Encoding: xchunked", f"Content-Length: {len(body)}"], ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: identity, chunked"], ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding : chunked"], ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: \x0bchunked"], ["X: y\rContent-Length: 5"],
        ["Transfer-Encoding:\tchunked", "Transfer-encoding: cow"], ["Content-Length: 5\x00"],
    ])  # fmt: skip
    return Malformed(f"smuggled: {lines[0][:40]}", head(chance.choice(POSTS), *lines) + body, _right(400, 501))


def _headers(chance: random.Random) -> Malformed:
    """Headers that are too large or too many, or no headers; or a method, a version or a type that is not taken."""
    path = chance.choice(POSTS)
    body = _whole(path)
    size = f"Content-Length: {len(body)}"
    whole = posted(path, body)
    version = chance.choice([b"HTTP/11", b"HTTP/x", b"XTTP/1.1", b"", b"HTTP/1.1.1"])
    method = chance.choice([b"PUT", b"DELETE", b"post", b"OPTIONS", b"TRACE", b"PATCH", b"GET"])
    type_ = chance.choice([b"text/plain", b"", b"application/jsonx", b"multipart/form-data"])
    cases: list[tuple[str, bytes, tuple[int, ...]]] = [
        ("huge header", head(path, size, f"X: {'y' * 100_000}") + body, (431,)),
        ("huge headers", head(path, size, *(f"X-{n}: {'y' * 300}" for n in range(400))) + body, (431,)),
        ("no colon", head(path, size, "nonsense") + body, (400,)),
        ("no name", head(path, size, ": x") + body, (400,)),
        ("bad name", head(path, size, "a b: x") + body, (400,)),
        ("a NUL", head(path, size, "a: \x00") + body, (400,)),
        ("no host", whole.replace(b"Host: localhost\r\n", b""), (400,)),
        ("two hosts", head(path, size, "Host: y") + body, (400,)),
        ("bad version", whole.replace(b"HTTP/1.1", version, 1), (400,)),
        ("method", whole.replace(b"POST", method, 1), (405,)),
        ("no method", whole.replace(b"POST", chance.choice([b"", b"P OST", b"P(ST", b"\x00"]), 1), (400,)),
        ("type", whole.replace(b"application/json", type_), (415,)),
        ("no type", whole.replace(b"Content-Type: application/json\r\n", b""), (415,)),
        ("expects", posted(path, b"x", "Expect: 200-maybe"), (400, 417)),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 401, 404, 405)),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(200) + b"\r\n\r\n", (400,)),
        ("noise", chance.randbytes(chance.randrange(1, 400)) + b"\r\n\r\n", (400,)),
    ]  # fmt: skip
    kind, sent, right = chance.choice(cases)
    return Malformed(kind, sent, frozenset(right))


def _key(chance: random.Random) -> Malformed:
    """It has no key, or another one."""
    basic = base64.b64encode(f"x:{KEY}x".encode()).decode()
    wrong = chance.choice([
        KEY, f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"bearer\t{KEY}", "Bearer", "Bearer ", f"Basic {basic}", "Basic !!!",
        f"Digest {KEY}", "Basic " + base64.b64encode(KEY.encode()).decode(), "Bearer " + "x" * 20_000, f"Bearer {KEY} {KEY}",
        "Bearer \xff\xfe",
        "Basic =", f"Bearer {KEY.upper()}", "Bearer null", f"Token {KEY}",
    ])  # fmt: skip
    path = chance.choice([*POSTS, "/", "/metrics", "/v1/models", "/nothing"])
    lines = chance.choice([[f"Authorization: {wrong}"], [f"Authorization: {wrong}", "Authorization: x"], [f"X-Api-Key: {KEY}"], []])
    method = "POST" if path in POSTS else "GET"
    return Malformed("key", head(path, *lines, "Content-Length: 0", method=method, key=None), _right(401))


def _path(chance: random.Random) -> Malformed:
    if chance.random() < 0.1:
        return Malformed("very long path", head("/" + "a" * 100_000, method="GET"), _right(431))
    if chance.random() < 0.3:
        strange = "".join(chance.choice("/.%\\~:;[]@!$&'()*+,=é{}|^`<>\"") for _ in range(chance.randrange(1, 80)))
        return Malformed("strange path", head("/" + strange, method="GET"), _right(400, 404))
    path = chance.choice(PATHS)
    return Malformed(f"path {path[:40]}", head(path, method="GET"), _right(400, 404))


# ------------------------------------------------------------------------------------------- chunks, and bad senders


def _chunks(chance: random.Random) -> Malformed:
    """Chunks with a wrong size or end."""
    path = chance.choice(POSTS)
    body = _whole(path)
    size = b"%x" % len(body)
    sent = chance.choice([
        b"ZZ\r\n" + body, b"-1\r\n" + body, b"\r\n" + body, b"0x5\r\n" + body, b"f" * 30 + b"\r\n" + body,
        b" 5\r\nabcde\r\n0\r\n\r\n",        b"5\nabcde\n0\n\n", size + b"\r\n" + body + b"xx0\r\n\r\n",
        size + b"\r\n" + body + b"\r\n-0\r\n\r\n",
        size + b";" + b"e" * 40_000 + b"\r\n",
        b"5\r\nabcde" + b"0\r\n\r\n" + body, b"%x\r\n" % (len(body) - 3) + body + b"\r\n0\r\n\r\n",
    ])  # fmt: skip
    # 408 where a line has not ended as lines end, or the chunk is still to come
    return Malformed(f"chunk {sent[:10]!r}", head(path, "Transfer-Encoding: chunked") + sent, _right(400, 408))


def _endless(chance: random.Random) -> Malformed:
    """Chunks, or a body, that never end."""
    path, size = chance.choice(POSTS), chance.choice([1, 1024, 65536])
    piece = b"%x\r\n" % size + b" " * size + b"\r\n"
    if chance.random() < 0.7:
        return Malformed("endless chunks", head(path, "Transfer-Encoding: chunked"), _right(408, 413), drip=piece)
    return Malformed("endless body", head(path, "Content-Length: 900000"), _right(408), drip=b" ")


def _slow(chance: random.Random) -> Malformed:
    """Its head comes byte by byte, or its body."""
    path = chance.choice(POSTS)
    if chance.random() < 0.5:
        return Malformed("slow head", f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX: ".encode(), _right(408), drip=b"y")
    return Malformed("slow body", head(path, "Content-Length: 5000") + b"{", _right(408), drip=b" ")


def _silent(chance: random.Random) -> Malformed:
    """It stops in the middle, and waits."""
    path = chance.choice(POSTS)
    whole = posted(path, _whole(path))
    before_body = whole.index(b"\r\n\r\n") + 4
    until = chance.choice([0, 1, before_body - 2, before_body, len(whole) - 1, chance.randrange(len(whole))])
    right = _right(408) if until else _right(CLOSED)
    return Malformed(f"silent after {until}", whole[:until], right)


def _half_closed(chance: random.Random) -> Malformed:
    """Its sender closes its half of the connection in the middle."""
    path = chance.choice(POSTS)
    whole = posted(path, _whole(path))
    return Malformed("half closed", whole[: chance.randrange(len(whole))], _right(CLOSED, 400), half_closed=True)


def _rest(chance: random.Random) -> Malformed:
    """It is refused for its head, and its body never ends."""
    lines = chance.choice([["Content-Length: 100000000000"], ["Transfer-Encoding: chunked"]])
    piece = b"4000\r\n" + b" " * 16384 + b"\r\n" if "chunked" in lines[0] else b" " * 16384
    path, key, right = chance.choice([("/nothing", KEY, 404), (ANSWER, None, 401), ("/metrics", KEY, 405)])
    return Malformed("endless rest", head(path, *lines, key=key), _right(right), drip=piece)


def _vanishing(chance: random.Random) -> Malformed:
    """A whole request for a stream, whose sender is gone before, or while, it is read."""
    path = chance.choice(POSTS)
    more: dict[str, object] = {"mmedge": {"explain": True}} if path != ANSWER else {"explain": True, "evaluate": True}
    body = _whole(path, stream=True, **more)
    return Malformed("vanishes", posted(path, body), _right(200, CLOSED), leaves_after=chance.choice([0, 0, 1, 20, 300, 600]))


FAMILIES: tuple[tuple[Callable[[random.Random], Malformed], float], ...] = (
    (_field, 25), (_not_json, 8), (_cut_off, 5), (_nested, 6), (_surrogate, 4), (_twice, 3), (_encoded, 3), (_flipped, 4),
    (_noise, 2), (_length, 5), (_smuggled, 5), (_headers, 8), (_key, 4), (_path, 6), (_chunks, 5), (_endless, 1), (_slow, 1),
    (_silent, 1),
    (_half_closed, 2), (_rest, 1), (_vanishing, 3),
)  # fmt: skip


def exchange(port: int, request: Malformed, latest: float) -> tuple[int, bytes]:
    """Send a request; return the status of the response, 0 where there is none, and the response as it came.

    Raises:
        TimeoutError: It has not ended after `latest` seconds.
    """
    deadline = time.monotonic() + latest
    with socket.create_connection(("127.0.0.1", port), latest) as connection:
        try:
            connection.sendall(request.sent)
            if request.half_closed:
                connection.shutdown(socket.SHUT_WR)
            if request.leaves_after is not None:
                said = connection.recv(request.leaves_after) if request.leaves_after else b""
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
                return (int(said.split()[1]) if len(said.split()) > 1 else CLOSED), said
            while request.drip and not select.select([connection], [], [], PAUSE)[0]:
                if time.monotonic() > deadline:
                    raise TimeoutError
                connection.sendall(request.drip)
        except (ConnectionResetError, BrokenPipeError):
            pass  # a response may have come before
        return _response(connection, deadline)


def _response(connection: socket.socket, deadline: float) -> tuple[int, bytes]:
    """Return the status and the bytes of the first response on a connection."""
    said = b""
    try:
        while not _is_whole(said):
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            part = connection.recv(65536)
            if not part:
                break
            said += part
    except (ConnectionResetError, BrokenPipeError):
        pass
    return (int(said.split()[1]) if said.startswith(b"HTTP/1.1 ") else CLOSED), said


def _is_whole(said: bytes) -> bool:
    first, ended, body = said.partition(b"\r\n\r\n")
    if not ended:
        return False
    lines = dict(line.lower().split(b": ", 1) for line in first.split(b"\r\n")[1:] if b": " in line)
    if b"content-length" in lines:
        return len(body) >= int(lines[b"content-length"])
    return body.endswith(b"0\r\n\r\n") if lines.get(b"transfer-encoding") == b"chunked" else False
