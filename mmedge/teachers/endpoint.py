"""The teacher behind an OpenAI-compatible endpoint: hundreds of requests in flight, each on a connection that is kept open.

`mmedge.openai` writes requests and reads replies; this file is the transport, through aiohttp. Proxies from the environment
are used, TLS certificates are checked, and redirects are not followed: a key is sent to the endpoint that the recipe names, and
nowhere else. `benchmarks/collector.py` measures it.
"""

from __future__ import annotations

import asyncio
import ssl
from types import SimpleNamespace

import aiohttp

from mmedge.openai import LARGEST_REPLY, ChatFailure, ChatProtocol, ChatReply, HttpReply, Message, proxy_for
from mmedge.teachers.base import SampleRequest

CONNECT_SECONDS = 15.0


class EndpointTeacher:
    """A `SampledTeacher` behind an endpoint.

    Args:
        chat: The endpoint, its model, and how it samples.
        concurrency: The most requests in flight.
        timeout: Seconds until a reply must have arrived in full.

    Raises:
        MmedgeError: The environment names a proxy that is not supported.
    """

    def __init__(self, chat: ChatProtocol, concurrency: int = 64, timeout: float = 300.0) -> None:
        self._chat, self._concurrency, self._timeout = chat, concurrency, timeout
        self._proxy = proxy_for(chat.base_url)
        self._tokens_per_character = 0.0

    @property
    def name(self) -> str:
        return self._chat.model

    @property
    def parallel(self) -> tuple[int, int]:
        return min(self._concurrency, max(32, self._concurrency // 4)), self._concurrency

    def most_tokens(self, messages: tuple[Message, ...]) -> int:
        """Return how many tokens a prompt has at most: its bytes, or by the largest share seen so far, and a tenth more."""
        if self._tokens_per_character:
            return int(_characters(messages) * self._tokens_per_character * 1.1) + 8
        return sum(len(content.encode("utf-8", "replace")) + 8 for _, content in messages)

    async def __aenter__(self) -> EndpointTeacher:
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context()),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            trace_configs=[tracing],
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def sample(self, request: SampleRequest) -> ChatReply:
        while True:
            body = self._chat.body(request.messages, request.max_tokens, n=request.wanted, seed=request.seed)
            reply = self._chat.read(await self._post(body), request.messages)
            if reply is None:
                continue
            if not reply.estimated and (characters := _characters(request.messages)):
                self._tokens_per_character = max(self._tokens_per_character, reply.prompt_tokens / characters)
            return reply

    async def _post(self, body: bytes) -> HttpReply:
        """Send a request and return the whole response.

        Raises:
            ChatFailure: There was no whole response in time.
            MmedgeError: The certificate is not trusted.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await self._exchange(body)
        except aiohttp.ClientConnectorCertificateError as error:
            raise self._chat.untrusted_certificate(_reason(error)) from None
        except aiohttp.ConnectionTimeoutError:
            raise ChatFailure("unreachable", f"no connection within {CONNECT_SECONDS:.0f} s") from None
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
            raise ChatFailure("unreachable", self._chat.clean(_reason(error))) from None
        except TimeoutError:
            raise ChatFailure("timeout", f"no complete reply within {self._timeout:g} s", overloaded=True) from None
        except aiohttp.ClientResponseError as error:
            raise ChatFailure("garbage", self._chat.clean(f"not an HTTP response: {error.message[:80]}")) from None
        except (aiohttp.ClientError, OSError) as error:
            raise ChatFailure("dropped", self._chat.clean(_reason(error))) from None

    async def _exchange(self, body: bytes) -> HttpReply:
        headers = self._chat.headers()
        while True:
            connection = SimpleNamespace(reused=False)
            try:
                async with self._session.post(
                    self._chat.url,
                    data=body,
                    headers=headers,
                    proxy=self._proxy,
                    allow_redirects=False,
                    trace_request_ctx=connection,
                ) as response:
                    found = {name.lower(): value for name, value in response.headers.items()}
                    return HttpReply(response.status, found, await _whole_body(response))
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                heard = not isinstance(getattr(error, "message", ""), str)  # aiohttp puts half a response there
                if heard or not connection.reused:
                    raise
                # the server had closed an idle connection and never saw the request


async def _note_reuse(_: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceConnectionReuseconnParams) -> None:
    context.trace_request_ctx.reused = True


async def _whole_body(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > LARGEST_REPLY:
            raise ChatFailure("garbage", f"the reply is larger than {LARGEST_REPLY >> 20} MB")
        parts.append(part)
    return b"".join(parts)


def _characters(messages: tuple[Message, ...]) -> int:
    return sum(len(content) for _, content in messages)


def _reason(error: BaseException) -> str:
    """Return what went wrong in a connection, without the address."""
    cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    return getattr(cause, "verify_message", None) or getattr(cause, "strerror", None) or str(cause) or type(error).__name__
