"""The server scenario over HTTP: which rate of questions a server holds, as its users see it. `mmedge bench --server URL`.

Works on anything that speaks OpenAI's protocol. An mmedge server is asked the question; others are asked as a bigger model is, or,
where they serve a student in another engine, with the student's own prompt, as tokens. Servers take turns, rate by rate, so that
what slows the machine for a while slows none of them alone. Time counts from the moment at which a question arrives, whether or not
the server had taken the ones before.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from mmedge.bench.results import Probe
from mmedge.bench.scenarios import PERCENTILES, PROBES, poisson_arrivals
from mmedge.errors import MmedgeError
from mmedge.openai import base_url_problem
from mmedge.progress import Progress
from mmedge.runtime.escalation import question_for
from mmedge.statistics import percentile
from mmedge.storage import Json
from mmedge.tasks.base import Example, Unparsed
from mmedge.tasks.dialogue import messages_of
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.forms import AnswerForm

AT_ONCE = 256  # questions that may be in flight; later ones wait, and their time counts
CHAT_TOKENS = 512  # of an answer with its reasons
LARGEST = 16 << 20  # bytes of a reply

Kind = Literal["mmedge", "student", "chat"]  # asked the question; with the student's own prompt; as a bigger model is


class Refused(Exception):
    """A server did not answer."""


@dataclass(frozen=True)
class ServedPrompts:
    """How a student is prompted where another engine serves it.

    Attributes:
        encoder: Makes its prompts.
        max_answer_tokens: The longest answer.
    """

    encoder: PromptEncoder
    max_answer_tokens: int


@dataclass
class Server:
    """One server, and what was measured of it.

    Attributes:
        url: Its address, up to `/v1`.
        model: What it calls the model.
        kind: How it is asked.
        single: Seconds of answers, one question at a time.
        answers: The texts, in the questions' order; None where it gave none.
        probes: Rates that were tried.
    """

    url: str
    model: str
    kind: Kind
    single: list[float] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)

    @property
    def rate(self) -> float | None:
        """The highest rate that was held, in questions a second."""
        return max((probe.rate for probe in self.probes if probe.held), default=None)


class Client:
    """Asks one server, on a connection for each thread.

    Args:
        url: Its address, up to `/v1`.
        key: Its key; empty for none.
        timeout: Seconds that an answer may take.

    Raises:
        MmedgeError: The address is invalid.
    """

    def __init__(self, url: str, key: str, timeout: float) -> None:
        if problem := base_url_problem(url):
            raise MmedgeError(problem, "write it as http://HOST:PORT/v1")
        self._parts, self._timeout = urlsplit(url), timeout
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._of_thread = threading.local()

    def send(self, method: str, path: str, body: bytes | None = None) -> Json:
        """Return the document that a server replies.

        Raises:
            Refused: It replies none.
        """
        try:
            connection = self._connection()
            connection.request(method, f"{self._parts.path.rstrip('/')}{path}", body, self._headers)
            response = connection.getresponse()
            found = json.loads(response.read(LARGEST))
            if response.status != 200 or not isinstance(found, dict):
                raise Refused(f"status {response.status}: {json.dumps(found)[:200]}")
            return found
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._of_thread.connection = None
            raise Refused(str(error) or type(error).__name__) from None

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._of_thread, "connection", None)
        if found is None:
            host, port = self._parts.hostname or "", self._parts.port
            if self._parts.scheme == "https":
                context = ssl.create_default_context()
                found = http.client.HTTPSConnection(host, port, timeout=self._timeout, context=context)
            else:
                found = http.client.HTTPConnection(host, port, timeout=self._timeout)
            self._of_thread.connection = found
        return found


def find_server(client: Client, url: str, model: str | None, student: ServedPrompts | None) -> Server:
    """Return a server with the model that it is asked for: the only one that it lists where none is named.

    Raises:
        MmedgeError: It does not list its models, or not that one, or several and none is named.
    """
    try:
        listed = client.send("GET", "/models")["data"]
        owners = {str(one["id"]): str(one.get("owned_by")) for one in listed}
    except (Refused, KeyError, TypeError, AttributeError) as error:
        raise MmedgeError(f"{url} does not list its models: {str(error)[:200]}", "check that it is up; most end in /v1") from None
    if not owners:
        raise MmedgeError(f"{url} lists no models", "load one there, and try again")
    if model is not None and model not in owners:
        raise MmedgeError(f"{url} has no model {model!r}", f"it has {', '.join(owners)}")
    if model is None and len(owners) > 1:
        raise MmedgeError(f"{url} has {len(owners)} models: {', '.join(owners)}", "choose one with --model NAME")
    name = model or next(iter(owners))
    return Server(url, name, "mmedge" if owners[name] == "mmedge" else "student" if student is not None else "chat")


class ServerRequests:
    """Requests for one server's answers, and what is read of the replies.

    Args:
        server: Who is asked.
        client: Asks it.
        form: What answers look like.
        student: How the student is prompted; for the kind `student`.
    """

    def __init__(self, server: Server, client: Client, form: AnswerForm, student: ServedPrompts | None) -> None:
        self._server, self._client, self._form, self._student = server, client, form, student
        self.path = "/completions" if server.kind == "student" else "/chat/completions"

    def body(self, example: Example) -> bytes:
        """Return the request for a question."""
        kind, fields = self._server.kind, dict[str, Any](model=self._server.model)
        if kind == "student":
            assert self._student is not None
            encoder = self._student.encoder
            prompt = encoder.prompt("predict", encoder.prompts.reasoning_context(example))
            fields |= {"prompt": [*prompt.context, *prompt.begun], "max_tokens": self._student.max_answer_tokens, "temperature": 0}
        elif kind == "mmedge":
            fields |= {"messages": messages_of(example)}
            fields |= {"mmedge": {"choices": list(example.choices)}} if example.choices else {}
        else:
            content = question_for(example, self._form)
            fields |= {"messages": [{"role": "user", "content": content}], "max_tokens": CHAT_TOKENS, "temperature": 0}
        return json.dumps(fields).encode()

    def send(self, body: bytes) -> Json:
        """Return the reply.

        Raises:
            Refused: There is none.
        """
        return self._client.send("POST", self.path, body)

    def text(self, reply: Json, example: Example) -> str:
        """Return the answer of a reply; what is withheld is the student's guess.

        Raises:
            Refused: It has none.
        """
        try:
            choice = reply["choices"][0]
            text = choice["text"] if self._server.kind == "student" else choice["message"]["content"]
            if text is None:
                text = choice["mmedge"]["guess"]
        except (KeyError, IndexError, TypeError):
            raise Refused("a reply without text") from None
        if self._server.kind != "chat":
            return str(text).strip()
        found = self._form.read(str(text), example)
        return "" if isinstance(found, Unparsed) else found.pseudo_label


@dataclass(frozen=True)
class ServerBench:
    """How much is measured.

    Attributes:
        latency_bound: Seconds that p99 must keep.
        seconds: About how long one rate is tried.
        single: Questions that are asked one at a time.
        timeout: Seconds that an answer may take.
    """

    latency_bound: float
    seconds: float
    single: int = 100
    timeout: float = 60.0


def measure(
    urls: Sequence[str],
    models: Sequence[str],
    examples: Sequence[Example],
    form: AnswerForm,
    settings: ServerBench,
    progress: Progress,
    student: ServedPrompts | None = None,
    key_env: str | None = None,
) -> list[Server]:
    """Measure servers on the same questions, in turn.

    Args:
        urls: Their addresses.
        models: The model of each; none for the only one that each lists, one for all alike.
        examples: The questions.
        form: What answers look like.
        settings: How much is measured.
        progress: Where progress is shown.
        student: How the student is prompted where another engine serves it.
        key_env: The environment variable that holds the servers' key.

    Raises:
        MmedgeError: A server cannot be asked, or there is not one model for each.
    """
    if len(models) not in (0, 1, len(urls)):
        raise MmedgeError(f"{len(models)} models for {len(urls)} servers", "give --model once, or once for each --server")
    if student is not None and student.encoder.family != "decoder-only":
        raise MmedgeError("only decoder-only students are served by other engines", "leave out --student")
    clients = [Client(url, os.environ.get(key_env, "") if key_env else "", settings.timeout) for url in urls]
    named = [models[place % len(models)] if models else None for place in range(len(urls))]
    servers = [find_server(client, url, model, student) for client, url, model in zip(clients, urls, named, strict=True)]
    askings = [ServerRequests(server, client, form, student) for server, client in zip(servers, clients, strict=True)]
    with progress.task("one at a time", total=len(examples)) as step:
        for number, example in enumerate(examples):
            for server, asking in zip(servers, askings, strict=True):
                _one(server, asking, example, timed=number < settings.single)
            step.advance(1)
    with progress.task("server", total=PROBES * len(servers)) as step:
        searches = [_hold_bound(server, asking, examples, settings) for server, asking in zip(servers, askings, strict=True)]
        for _ in range(PROBES):
            for search in searches:
                next(search, None)
                step.advance(1)
    return servers


def _one(server: Server, asking: ServerRequests, example: Example, timed: bool) -> None:
    """Ask one question, and keep its answer."""
    body = asking.body(example)
    started = time.perf_counter()
    try:
        reply = asking.send(body)
        seconds = time.perf_counter() - started
        server.answers.append(asking.text(reply, example))
        if timed:
            server.single.append(seconds)
    except Refused as error:
        server.answers.append(None)
        if not any(one is not None for one in server.answers[:8]) and len(server.answers) >= 8:
            raise MmedgeError(f"{server.url} does not answer: {error}", "check the model, and --student for a student") from None


def _hold_bound(server: Server, asking: ServerRequests, examples: Sequence[Example], settings: ServerBench) -> Iterator[None]:
    """Double the rate until p99 breaks its bound, then halve what is not known; one probe at a time."""
    if not server.single:
        return
    bodies = [asking.body(example) for example in examples]
    low, high, rate = 0.0, math.inf, 0.5 / percentile(server.single, 50)
    for number in range(PROBES):
        arrivals = poisson_arrivals(rate, settings.seconds, seed=number)
        server.probes.append(probe(asking, bodies, rate, arrivals, settings))
        low, high = (rate, high) if server.probes[-1].held else (low, rate)
        rate = 2 * low if high == math.inf else (low + high) / 2
        yield


def probe(asking: ServerRequests, bodies: Sequence[bytes], rate: float, arrivals: Sequence[float], settings: ServerBench) -> Probe:
    """Ask questions at their moments; each in a thread of its own, as far as `AT_ONCE` goes.

    Args:
        asking: Who is asked.
        bodies: Requests, asked in turn.
        rate: Arrivals a second.
        arrivals: Their moments, in seconds.
        settings: The bound.
    """
    latencies: list[float] = []
    lost = threading.Event()  # the queue only grows
    started = time.perf_counter()

    def ask(number: int) -> None:
        if lost.is_set():
            return
        try:
            asking.send(bodies[number % len(bodies)])
        except Refused:
            return
        latencies.append(time.perf_counter() - started - arrivals[number])
        if latencies[-1] > 20 * settings.latency_bound:
            lost.set()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number, arrival in enumerate(arrivals):
            if (left := started + arrival - time.perf_counter()) > 0:
                time.sleep(left)
            if lost.is_set():
                break
            pool.submit(ask, number)
    seconds = time.perf_counter() - started
    whole = latencies or [math.inf]
    p99 = percentile(whole, 99)
    return Probe(
        rate=rate,
        arrivals=len(arrivals),
        answered=len(latencies),
        held=len(latencies) == len(arrivals) and p99 <= settings.latency_bound,
        answers_per_second=len(latencies) / seconds,
        latencies=[round(one, 6) for one in latencies],
        **{f"p{p}_ms": 1000 * percentile(whole, p) if latencies else 0.0 for p in PERCENTILES},
    )
