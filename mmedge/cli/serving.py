"""Serving bundles over HTTP: `serve`."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from mmedge.cli.asking import Abstention, Escalation, bigger_model
from mmedge.cli.common import Threads, need
from mmedge.errors import MmedgeError
from mmedge.machine import share_memory

_ATTEMPTS = 2  # of the bigger model: a client waits
_DAY = 86_400  # seconds
_LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Access:
    """Who may ask, and how."""

    panel: ClassVar[str] = "Access"

    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all addresses of this machine.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8080
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="API keys, one per line; only requests with one of them are answered.")
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Host name that a local server without keys also answers to, such as a proxy's."),
    ] = None
    certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="TLS certificate with its chain, in PEM format.")] = None
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's private key, in PEM format.")] = None
    access_log: Annotated[bool, typer.Option("--access-log/--no-access-log", help="Log requests as JSON lines.")] = True


@dataclass(frozen=True)
class ServerBounds:
    """What the server accepts at most."""

    panel: ClassVar[str] = "Limits"

    max_rows: Annotated[int, typer.Option(min=1, max=256, help="Requests answered at the same time.")] = 16
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait for their turn; others get 429.")] = 512
    max_clients: Annotated[int, typer.Option(min=1, help="Open requests, including those that wait; others get 503.")] = 1024
    max_body: Annotated[int, typer.Option(min=1, metavar="BYTES", help="Largest request; larger ones get 413.")] = 1 << 20
    body_timeout: Annotated[
        float, typer.Option(min=0.1, max=_DAY, metavar="SECONDS", help="Longest time for a request to arrive; then 408.")
    ] = 10.0
    timeout: Annotated[float, typer.Option(min=0.1, max=_DAY, metavar="SECONDS", help="Longest wait for an answer; then 503.")] = (
        60.0
    )
    drain: Annotated[float, typer.Option(min=1, max=_DAY, metavar="SECONDS", help="Time to finish requests after SIGTERM.")] = 30.0
    cache_memory: Annotated[
        int, typer.Option(min=1, metavar="MB", help="Memory per bundle for a cache of what its requests had it read.")
    ] = 512


def _say(line: str) -> None:
    """Say a line to whoever runs the server, while somebody reads it."""
    with contextlib.suppress(OSError):
        typer.echo(line, err=True)


def serve(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE…", help="Bundle folders; clients call them RECIPE/BUNDLE.")],
    access: Access,
    bounds: ServerBounds,
    abstention: Abstention,
    escalation: Escalation,
    constrained: Annotated[
        bool | None,
        typer.Option("--constrained/--free", help="Allow only answers of the task's form. Default: each bundle's setting."),
    ] = None,
    escalate_timeout: Annotated[
        float, typer.Option(min=0.1, max=_DAY, metavar="SECONDS", help="Longest wait for one attempt of the bigger model.")
    ] = 20.0,
    threads: Threads = None,
) -> None:
    """Serve bundles over HTTP, in OpenAI's protocol, with confidence."""
    for package in ("starlette", "uvicorn"):
        need(package, "serve")
    from mmedge.runtime import AnswerOptions
    from mmedge.serve.app import make_app
    from mmedge.serve.cascade import Cascade
    from mmedge.serve.models import open_models
    from mmedge.serve.server import check_certificate, listening
    from mmedge.serve.server import serve as serve_until_told
    from mmedge.serve.settings import ServerLimits, Settings, read_keys

    if (access.certificate is None) != (access.key is None):
        raise MmedgeError("--certificate and --key go together", "give both")
    if access.certificate is not None and access.key is not None:
        check_certificate(access.certificate, access.key)
    share_memory()
    keys = read_keys(access.api_key_file) if access.api_key_file else ()
    endpoint = bigger_model(escalation)
    bigger = Cascade(replace(endpoint, timeout=escalate_timeout, attempts=_ATTEMPTS)) if endpoint else None
    models = open_models(bundles, threads)
    options = AnswerOptions(constrained=constrained, escalate_to=bigger, **abstention.changes())
    limits = ServerLimits(
        bounds.max_body,
        bounds.body_timeout,
        bounds.timeout,
        bounds.max_clients,
        bounds.max_waiting,
        bounds.max_rows,
        bounds.drain,
        bounds.cache_memory << 20,
    )
    log = sys.stdout if access.access_log else None
    local = not keys and access.host in _LOCAL
    hosts = frozenset(name.lower() for name in access.allow_host or ()) if local else None
    gate = make_app(models, Settings(keys, limits, options, hosts), log, _say)
    listener = listening(access.host, access.port)
    if not keys and access.host not in _LOCAL:
        typer.echo(
            "notice: anyone who can reach this address gets answers; --api-key-file admits only clients with a key", err=True
        )
    scheme, port = "https" if access.certificate else "http", listener.getsockname()[1]
    host = f"[{access.host}]" if ":" in access.host else access.host

    def ready() -> None:
        _say(f"serving {', '.join(models)} at {scheme}://{host}:{port}")

    serve_until_told(gate, listener, limits, ready, access.certificate, access.key, gate.tell_bug, gate.tell_refused)
