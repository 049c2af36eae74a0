"""What a request passes before anything else looks at it: the key, how many there are, how large and slow it is."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from dps.serve.config import Limits
from dps.serve.protocol import Refused

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
OPEN = ("/health",)
"""Paths that need no key and are always answered."""
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics", *OPEN)
"""Paths that are counted by name; clients can make up any number of others."""


class Gate:
    """ASGI middleware around the application."""

    def __init__(self, app: Any, *, key: str | None, limits: Limits, count: Callable[[str, int], None]) -> None:
        """Let pass who has the key, within the limits; ``count`` is told path and status of each answer."""
        self._app, self._limits, self._count = app, limits, count
        self._expected = None if key is None else f"Bearer {key}".encode()
        self._open = 0

    async def __call__(self, scope: Message, receive: Receive, send: Callable[[Message], Awaitable[None]]) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def told(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._count(scope["path"] if scope["path"] in PATHS else "other", message["status"])
            await send(message)

        counted = scope["path"] not in OPEN
        self._open += counted
        try:
            if counted:
                self._check(scope)
            body = await self._body(receive)
            async with asyncio.timeout(self._limits.request_s + 1):
                await self._app(scope, body, told)
        except (Refused, TimeoutError) as error:
            if started:
                return None  # the connection is closed in the middle of the answer
            late = f"The request took longer than {self._limits.request_s:g} s."
            refused = error if isinstance(error, Refused) else Refused(504, late, "timeout")
            await refused.response()(scope, receive, told)
        finally:
            self._open -= counted
        return None

    def _check(self, scope: Message) -> None:
        """Raise Refused for a wrong key, or too many requests."""
        if self._expected is not None:
            came = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(came, self._expected):
                message = "Expected the server's key as Authorization: Bearer KEY: none came, or another one."
                raise Refused(401, message, "invalid_api_key")
        if self._open > self._limits.requests:
            raise Refused(429, f"{self._limits.requests} requests are open already: try again later.", "busy")

    async def _body(self, receive: Receive) -> Receive:
        """Return what receives the body, which has come by then: in time, and not too large."""
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self._limits.body_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return receive
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._limits.request_bytes:
                        most = f"{self._limits.request_bytes:,}"
                        raise Refused(413, f"Expected a body of at most {most} bytes.", "too_large")
        except TimeoutError:
            seconds = f"{self._limits.body_s:g} s"
            raise Refused(408, f"The body of the request did not come within {seconds}.", "timeout") from None
        coming = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def whole() -> Message:
            return next(coming, None) or await receive()

        return whole
