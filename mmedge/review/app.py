"""The server behind the review page: for one person, on this machine alone.

    http://127.0.0.1:PORT/TOKEN/            the page
                          …/questions       GET ?show=undecided&start=0
                          …/decide, …/undo  POST

Every address begins with a random token, so that no other page or user of this machine can guess one. A request that another site
makes a browser send is refused as well: by its Host, its Origin, its Sec-Fetch-Site, and since a body must say that it is JSON.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from mmedge.errors import MmedgeError
from mmedge.review.desk import FILTERS, Desk
from mmedge.serve.failures import ApiError, invalid
from mmedge.serve.fields import parsed
from mmedge.serve.gate import CONTENT_POLICY, HEADERS, body_of, failure_of
from mmedge.serve.page import policy_of

PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
SHOWN = 10  # questions at a time
_LARGEST_BODY, _BODY_SECONDS = 1 << 17, 10.0
_SAME_SITE = ("same-origin", "none")


class ReviewApp:
    """The application.

    Args:
        desk: The run under review.
        port: Where it is served.
        token: What every address begins with; a random one by default.
    """

    def __init__(self, desk: Desk, port: int, token: str | None = None) -> None:
        self._desk, self.token = desk, token or secrets.token_urlsafe(24)
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.draining = False
        self._routes: dict[tuple[str, str], Callable[[Request], Awaitable[Response]]] = {
            ("GET", "/"): self._page,
            ("GET", "/questions"): self._questions,
            ("POST", "/decide"): self._decide,
            ("POST", "/undo"): self._undo,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            response = await self._answered(request)
        except MmedgeError as error:
            response = _failed(invalid(" — ".join(filter(None, (error.what, error.hint)))))
        except Exception as error:
            response = _failed(failure_of(error))
        for name, value in (HEADERS | {"Content-Security-Policy": CONTENT_POLICY}).items():
            response.headers.setdefault(name, value)
        await response(scope, receive, send)

    async def _answered(self, request: Request) -> Response:
        if request.headers.get("host", "") not in self._hosts:
            raise ApiError(403, "this server is for this machine alone", "forbidden")
        _, _, rest = request.url.path.partition("/")
        token, slash, path = rest.partition("/")
        if not secrets.compare_digest(token.encode(), self.token.encode()) or not slash:
            raise ApiError(404, "there is nothing at this address; open the one that mmedge review printed", "not_found")
        origin = request.headers.get("origin")
        same = origin is None or origin in {f"http://{host}" for host in self._hosts}
        if not same or request.headers.get("sec-fetch-site", "none") not in _SAME_SITE:
            raise ApiError(403, "another page may not ask this", "forbidden")
        route = self._routes.get((request.method, f"/{path}"))
        if route is None:
            known = any(place == f"/{path}" for _, place in self._routes)
            raise ApiError(405 if known else 404, "there is nothing at this address", "not_found")
        return await route(request)

    async def _page(self, _: Request) -> Response:
        return Response(PAGE, media_type="text/html", headers={"Content-Security-Policy": policy_of(PAGE)})

    async def _questions(self, request: Request) -> Response:
        show, start = request.query_params.get("show", FILTERS[0]), request.query_params.get("start", "0")
        if show not in FILTERS or not start.isdecimal() or len(start) > 9:
            raise invalid(f"show must be one of {', '.join(FILTERS)}, start a number", "show")
        return JSONResponse(self._desk.questions(show, int(start), SHOWN))

    async def _decide(self, request: Request) -> Response:
        return JSONResponse(self._desk.decide(await self._asked(request)))

    async def _undo(self, request: Request) -> Response:
        return JSONResponse({"question": self._desk.undo(await self._asked(request))})

    async def _asked(self, request: Request) -> dict[str, Any]:
        return parsed(await body_of(request, _LARGEST_BODY, _BODY_SECONDS))


def _failed(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers())
