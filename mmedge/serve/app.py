"""The routes of the server, as an ASGI application.

    app = make_app(open_models([folder]), Settings())

Parsing and the shapes of replies are in `requests` and `replies`; students are asked in the scheduler's threads.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TextIO

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from mmedge.errors import MmedgeError
from mmedge.runtime.endpoint import ESCALATED
from mmedge.runtime.options import SettledOptions
from mmedge.runtime.streaming import GrowingText
from mmedge.serve.failures import ApiError
from mmedge.serve.fields import parsed
from mmedge.serve.gate import Gate, body_of, ending, failure_of
from mmedge.serve.metrics import Metrics
from mmedge.serve.models import Model, opened_again
from mmedge.serve.page import PAGE, PAGE_POLICY
from mmedge.serve.reload import Reloader
from mmedge.serve.replies import Replied, Shape, answer_document, counted, cut, event, headers_of, markers, replied, usage
from mmedge.serve.requests import Asked, read_answer, read_chat, read_completion
from mmedge.serve.scheduler import Full, GivenUp, Job, Scheduler
from mmedge.serve.settings import Settings
from mmedge.tasks.base import Example
from mmedge.tasks.dialogue import characters
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.forms.schema import SchemaForm
from mmedge.tasks.forms.tools import ToolsForm

Told = Callable[[int, str, str, int], None]  # row, part, text, tokens that it took
Read = Callable[[dict[str, Any], Mapping[str, Model], Any], Asked]
_LONG = 4000  # characters of questions that are not counted while other requests wait
_STREAM = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass
class SharedState:
    """What the routes share.

    Attributes:
        models: The students, by name.
        settings: How the server is set up.
        metrics: What is counted.
        scheduler: Who is answered next.
    """

    models: dict[str, Model]
    settings: Settings
    metrics: Metrics
    scheduler: Scheduler

    async def asked(self, request: Request, read: Read) -> tuple[Asked, SettledOptions]:
        """Read a request, and complete its options.

        Raises:
            ApiError: It is wrong.
        """
        limits = self.settings.limits
        document = parsed(await body_of(request, limits.body, limits.body_seconds))
        asked = read(document, self.models, self.settings.options)
        request.state.facts["model"] = asked.model.name
        try:
            settled = asked.model.settled(asked.options)
            if not asked.cut and sum(characters(example) for example in asked.examples) > _LONG:
                await asyncio.to_thread(asked.check_lengths)
            elif not asked.cut:
                asked.check_lengths()
        except MmedgeError as error:
            raise asked.refused(error) from None
        if settled.escalate_to is not None and ESCALATED.lower() in request.headers:
            settled = replace(settled, escalate_to=None)  # another student has escalated it: it may be this one
        return asked, settled

    def begin(self, request: Request, asked: Asked, settled: SettledOptions, told: Told | None) -> Job:
        """Let the student be asked.

        Raises:
            ApiError: Too many wait.
        """

        def work(job: Job) -> list[Replied]:
            self.metrics.observe("mmedge_queue_seconds", job.began - job.queued)
            student = asked.model.asked_by(job.check, asked.max_tokens)
            written = None if told is None else _growing(told, student.speaker.encoder)
            rows: list[Example] = [example for example in asked.examples for _ in range(asked.samples)]
            answers = student.answered(rows, settled, written, asked.sampling)
            return [replied(asked.model, answer, asked.stop) for answer in answers]

        try:
            return self.scheduler.submit(request.state.client, work)
        except Full:
            raise ApiError(429, "too many requests wait; try again later", "queue_full", retry_after=1) from None

    def count(self, request: Request, model: Model, replies: list[Replied]) -> dict[str, str]:
        """Count answers, log facts of them, and return the headers that tell of them."""
        facts, cost = request.state.facts, 0.0
        for reply in replies:
            self.metrics.count("mmedge_answers_total", model=model.name, source=reply.answer.source, outcome=reply.outcome)
            if reply.answer.confidence is not None:
                self.metrics.observe("mmedge_confidence", min(1.0, reply.answer.confidence), model=model.name)
            if reply.answer.escalation is not None:
                cost += reply.answer.escalation.cost
            if (written := reply.answer.written) is not None:
                self.metrics.count("mmedge_tokens_total", written.prompt_tokens, model=model.name, kind="read")
                made = len(written.tokens) + written.reasoning_tokens
                self.metrics.count("mmedge_tokens_total", made, model=model.name, kind="written")
                facts["tokens"] = facts.get("tokens", 0) + made
        facts |= markers(replies)
        if problem := next((reply.answer.problem for reply in replies if reply.answer.problem), None):
            facts["problem"] = problem
        headers = headers_of(replies)
        if cost:
            self.metrics.count("mmedge_escalation_cost_total", cost, model=model.name)
            facts["cost"], headers["X-Mmedge-Cost"] = round(cost, 8), f"{cost:.8f}"
        return headers


def _growing(told: Told, encoder: PromptEncoder) -> Callable[[str, int, int], None]:
    """Return what is called with part, row and token, and tells of the text that each adds."""
    texts: dict[tuple[int, str], GrowingText] = {}
    tokens: Counter[tuple[int, str]] = Counter()  # since something was told

    def written(part: str, row: int, token: int) -> None:
        tokens[row, part] += 1
        if new := texts.setdefault((row, part), GrowingText(encoder)).with_token(token):
            told(row, part, new, tokens.pop((row, part)))

    return written


async def _finished(request: Request, asked: Asked, job: Job, seconds: float) -> list[Replied]:
    """Return a job's answers.

    Raises:
        ApiError: It takes too long.
        ClientDisconnect: Nobody waits for them.
    """
    done = asyncio.ensure_future(asyncio.wrap_future(job.done))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({done, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return _result(asked, job)
        if gone.done():
            raise ClientDisconnect
        raise ApiError(503, f"there was no answer within {seconds:g} s", "timeout", retry_after=1)
    finally:
        gone.cancel()
        done.cancel()
        job.give_up()


def _result(asked: Asked, job: Job) -> list[Replied]:
    try:
        found: list[Replied] = job.done.result()
        return found
    except GivenUp:
        raise ClientDisconnect from None
    except MmedgeError as error:
        raise asked.refused(error) from None


async def _gone(request: Request) -> None:
    """Return when the client closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _openai(served: SharedState, read: Read, chat: bool) -> Callable[[Request], Any]:
    """Return the route of chats or of completions."""

    async def route(request: Request) -> Response:
        asked, settled = await served.asked(request, read)
        shape = Shape(asked, chat)
        if asked.stream:
            return await _streamed(served, request, asked, settled, lambda events: _chunks(events, asked, shape))
        job = served.begin(request, asked, settled, None)
        replies = await _finished(request, asked, job, served.settings.limits.seconds)
        return JSONResponse(shape.whole(replies), headers=served.count(request, asked.model, replies))

    return route


def _answer(served: SharedState) -> Callable[[Request], Any]:
    """Return the route of answers."""

    async def route(request: Request) -> Response:
        started = time.monotonic()
        asked, settled = await served.asked(request, read_answer)
        if asked.stream:
            return await _streamed(served, request, asked, settled, lambda events: _pieces(events, asked, started))
        job = served.begin(request, asked, settled, None)
        replies = await _finished(request, asked, job, served.settings.limits.seconds)
        headers = served.count(request, asked.model, replies)
        return JSONResponse(answer_document(asked.model, replies[0], time.monotonic() - started), headers=headers)

    return route


# ---------------------------------------------------------------------------------------------------------- streams

Written = tuple[int, str, str, int]  # row, part, text, tokens
Events = AsyncIterator[Written | list[Replied]]


async def _streamed(
    served: SharedState,
    request: Request,
    asked: Asked,
    settled: SettledOptions,
    shown: Callable[[Events], AsyncIterator[bytes]],
) -> Response:
    """Return a stream of what is written; where the answer may yet be withheld, all of it comes when that is decided."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Written | None]()

    def put(item: Written | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def told(row: int, part: str, text: str, tokens: int) -> None:
        put((row, part, text, tokens))

    job = served.begin(request, asked, settled, None if settled.decides_afterwards else told)
    job.done.add_done_callback(lambda _: put(None))

    async def events() -> Events:
        try:
            async with asyncio.timeout(served.settings.limits.seconds):
                while (item := await queue.get()) is not None:
                    yield item
            replies = _result(asked, job)
            served.count(request, asked.model, replies)
            yield replies
        except TimeoutError:
            raise ApiError(503, "there was no answer in time", "timeout") from None
        finally:
            job.give_up()

    async def body() -> AsyncIterator[bytes]:
        try:
            async for part in shown(events()):
                yield part
        except asyncio.CancelledError:
            if not request.app.draining:
                served.metrics.count("mmedge_vanished_total")
                request.state.facts["vanished"] = True
                raise
            request.state.facts["failed"] = ending().code
            yield event(ending().body())  # and the stream ends as streams do
        except Exception as error:
            failure = failure_of(error)
            if failure.status == 500:
                request.app.tell_bug(error)
            request.state.facts["failed"] = failure.code
            yield event(failure.body())
        finally:
            job.give_up()

    return StreamingResponse(body(), media_type="text/event-stream", headers=_STREAM)


async def _chunks(events: Events, asked: Asked, shape: Shape) -> AsyncIterator[bytes]:
    """Yield the events of a chat or of completions."""
    rows = len(asked.examples) * asked.samples
    texts, sent, made = [""] * rows, [0] * rows, [0] * rows
    read = await asyncio.to_thread(_read, asked) if asked.running_usage else []
    for row in range(rows):
        if (first := shape.begins(row)) is not None:
            yield event(first)
    held = max((len(one) for one in asked.stop), default=1) - 1  # characters that may begin a stop text
    async for item in events:
        if isinstance(item, list):
            for row, reply in enumerate(item):
                if (call := shape.call(reply)) is not None:
                    for part in shape.calls(row, call):
                        yield event(part)
                elif rest := reply.text[sent[row] :] if reply.text.startswith(texts[row][: sent[row]]) else "":
                    yield event(shape.text(row, rest, usage(item[row : row + 1], 1) if read else None))
                yield event(shape.ends(row, reply))
            if asked.with_usage:
                yield event(shape.counted(item))
            yield b"data: [DONE]\n\n"
            return
        row, part_of, text, tokens = item
        made[row] += tokens
        if part_of != "answer" or asked.model.student.bundle.form.respells:
            continue  # it comes when it is finished
        texts[row] += text
        kept, stopped = cut(texts[row], asked.stop)
        until = len(kept) if stopped or not held else max(sent[row], len(kept) - held)
        if until > sent[row]:
            yield event(shape.text(row, kept[sent[row] : until], counted(read[row], made[row]) if read else None))
            sent[row] = until


def _read(asked: Asked) -> list[int]:
    """Return how many tokens each row reads."""
    speaker = asked.model.student.speaker
    prompts = [speaker.prompt("predict", speaker.reasoning_context(example)) for example in asked.examples]
    return [len(prompt.context) + len(prompt.begun) for prompt in prompts for _ in range(asked.samples)]


async def _pieces(events: Events, asked: Asked, started: float) -> AsyncIterator[bytes]:
    """Yield the events of an answer in mmedge's own words: `piece` while it is written, `answer` at its end."""
    wanted = {
        "answer": not asked.model.student.bundle.form.respells,
        "rationale": asked.options.explain,
        "evaluation": asked.options.evaluate,
    }
    parts = {name for name, shown in wanted.items() if shown}
    async for item in events:
        if isinstance(item, list):
            yield event(answer_document(asked.model, item[0], time.monotonic() - started), "answer")
            return
        _, part, text, _ = item
        if part in parts:
            yield event({"part": part, "text": text}, "piece")


# ----------------------------------------------------------------------------------------------------------- others


def _models(served: SharedState) -> Callable[[Request], Any]:
    def described(model: Model) -> dict[str, Any]:
        stated = model.student.bundle.manifest
        own = {
            "task": stated.task.name,
            "form": model.form,
            "precision": stated.precision,
            "max_answer_tokens": stated.max_answer_tokens,
            "calibrated": model.student.confidence is not None,
            "takes_choices": model.student.bundle.form.takes_choices,
            "reads_dialogues": model.student.reads_dialogues,
        }
        if stated.student.learned is not None:
            own["learned"] = list(stated.student.learned)
        form = model.student.bundle.form
        if isinstance(form, (SchemaForm, ToolsForm)):
            own[form.name] = form.document
        return {"id": model.name, "object": "model", "created": model.created, "owned_by": "mmedge", "mmedge": own}

    async def route(request: Request) -> Response:
        name = request.path_params.get("name")
        if name is None:
            return JSONResponse({"object": "list", "data": [described(model) for model in served.models.values()]})
        if name not in served.models:
            raise ApiError(404, "there is no such model: GET /v1/models lists those there are", "model_not_found", "model")
        return JSONResponse(described(served.models[name]))

    return route


def make_app(
    models: dict[str, Model], settings: Settings, log: TextIO | None = None, say: Callable[[str], None] = lambda _: None
) -> Gate:
    """Return the application, and begin to watch the bundles for replacements.

    Args:
        models: Who is served, by name.
        settings: How the server is set up.
        log: Where the access log goes; None for none.
        say: Called with lines for whoever runs the server.
    """
    metrics = Metrics()

    def prepared(model: Model) -> Model:
        model.settled(settings.options)  # refused now rather than with a request
        model.share(settings.limits.rows, settings.limits.cache, lambda rows: metrics.observe("mmedge_batch_rows", rows))
        return model

    def told(name: str, problem: str | None) -> None:
        metrics.count("mmedge_reloads_total", model=name, outcome="refused" if problem else "done")
        say(
            f"{name}: the new bundle is refused, the old one goes on: {problem}" if problem else f"{name}: the new bundle is served"
        )

    def gone(name: str) -> None:
        say(f"warning: {name}: its folder {models[name].folder} is gone; the bundle in memory goes on until the server ends")

    for model in models.values():
        prepared(model)
    served = SharedState(models, settings, metrics, Scheduler(settings.limits.rows, settings.limits.waiting))
    Reloader(models, lambda model: prepared(opened_again(model)), told, gone).start()

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        return PlainTextResponse("draining\n", 503) if gate.draining else PlainTextResponse("ready\n")

    async def measured(_: Request) -> Response:
        gauges = {
            "mmedge_queue_length": ("Requests that wait for their turn.", float(served.scheduler.waiting)),
            "mmedge_running": ("Requests that are answered now.", float(served.scheduler.running)),
        }
        return PlainTextResponse(metrics.text(gauges), media_type="text/plain; version=0.0.4")

    async def page(_: Request) -> Response:
        return Response(PAGE, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": PAGE_POLICY})

    routes = [
        Route("/", page),
        Route("/healthz", healthy),
        Route("/health", healthy),
        Route("/readyz", ready),
        Route("/metrics", measured),
        Route("/v1/models", _models(served)),
        Route("/v1/models/{name:path}", _models(served)),
        Route("/v1/chat/completions", _openai(served, read_chat, True), methods=["POST"]),
        Route("/v1/completions", _openai(served, read_completion, False), methods=["POST"]),
        Route("/v1/answer", _answer(served), methods=["POST"]),
    ]

    app = Router(routes, redirect_slashes=False)
    gate = Gate(app, settings, metrics, frozenset(route.path for route in routes), log)
    return gate
