"""The endpoints: a request becomes tickets, the tickets' records become the reply."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from dps.errors import InputError
from dps.run.service import Full, Service, Ticket
from dps.serve.asking import Front
from dps.serve.config import ServeConfig
from dps.serve.gate import Gate
from dps.serve.metrics import Metrics
from dps.serve.protocol import Asked, ChatAsked, CompletionAsked, Refused
from dps.serve.replies import Reply
from feature_store.records import Question

if TYPE_CHECKING:
    from dps.api import Asker

_QUIET_S = 15.0
"""A stream that has nothing to say says so after this many seconds, lest somebody between closes it."""


class Desk:
    """Takes the requests of one server."""

    def __init__(self, asker: Asker, service: Service, config: ServeConfig) -> None:
        """Answer by a service that runs."""
        self.front, self.service, self.metrics = Front(asker, config, service.engine), service, Metrics(service)
        self._asker, self._limits = asker, config.limits
        self._reader = ThreadPoolExecutor(1, "prompts")  # one thread has the tokenizer

    async def answer(self, asked: Asked, request: Request) -> Response:
        """Answer a request; one whose client has gone is given up."""
        started = time.monotonic()
        loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, dict[str, Any]]]()

        def told(number: int, event: dict[str, Any]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, (number, event))

        make = (self.front.tickets, asked, told if asked.stream else None)
        tickets = await loop.run_in_executor(self._reader, *make)
        chat = isinstance(asked, ChatAsked)
        reply = Reply(
            self._asker.model,
            self.front.name,
            self._asker.aggregator,
            tickets,
            chat=chat,
            n=asked.n,
            logprobs=asked.logprobs is not None and asked.logprobs is not False,
            responses=asked.responses,
            stops=self.service.engine.stops,
        )
        leave = partial(self._leave, asked, tickets)
        try:
            self.service.ask(tickets)
        except (Full, InputError) as error:
            leave()
            if isinstance(error, Full):
                raise Refused(429, f"{error} Try again later.", "queue_full") from None
            raise Refused(503, "The server is ending.", "ending") from None
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return _Stream(self._lines(reply, tickets, events, usage=usage, started=started), leave)
        waiting = asyncio.gather(*(asyncio.wrap_future(ticket.record) for ticket in tickets))
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may look any more
        gone = asyncio.ensure_future(_until_gone(request))
        try:
            limit = self._limits.request_s
            await asyncio.wait({waiting, gone}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done() and gone.done():
                raise Refused(499, "The client has gone.", "gone")
            if not waiting.done():
                raise Refused(504, f"The answer took longer than {limit:g} s.", "timeout")
            records = _result(waiting)
        finally:
            gone.cancel()
            waiting.cancel()
            leave()
        whole = reply.whole(records)
        self.metrics.answered(records, whole["usage"], time.monotonic() - started)
        return JSONResponse(whole)

    def _leave(self, asked: Asked, tickets: Sequence[Ticket]) -> None:
        """Give up what is not answered yet of a request; a retry of it gets the same repeats."""
        for ticket in tickets:
            ticket.cancel()
        if not all(ticket.answered for ticket in tickets):
            self.front.give_back(asked, tickets)

    async def _lines(
        self,
        reply: Reply,
        tickets: Sequence[Ticket],
        events: asyncio.Queue[tuple[int, dict[str, Any]]],
        *,
        usage: bool,
        started: float,
    ) -> AsyncIterator[str]:
        """Yield the events of a stream: progress as it comes, each choice when it is complete, and the usage."""
        futures = {asyncio.wrap_future(ticket.record): number for number, ticket in enumerate(tickets)}
        records: dict[int, Question] = {}
        try:
            while len(records) < len(tickets):
                coming = asyncio.ensure_future(events.get())
                await asyncio.wait({coming, *futures}, timeout=_QUIET_S, return_when=asyncio.FIRST_COMPLETED)
                said = [coming.result()] if coming.done() else []
                coming.cancel()
                while not events.empty():
                    said.append(events.get_nowait())
                for number, event in said:
                    yield _line(reply.progress(number, event))
                for future in [future for future in futures if future.done()]:
                    number = futures.pop(future)
                    records[number] = _result(future)
                    for piece in reply.pieces(number, records[number]):
                        yield _line(piece)
                if not said:
                    yield ": sampling\n\n"
                if time.monotonic() - started > self._limits.request_s:
                    raise Refused(504, f"The answer took longer than {self._limits.request_s:g} s.", "timeout")
            ordered = [records[number] for number in range(len(tickets))]
            self.metrics.answered(ordered, reply.usage(ordered), time.monotonic() - started)
            if usage:
                yield _line(reply.last(ordered))
            yield "data: [DONE]\n\n"
        except Refused as refused:  # the status has been sent
            yield _line(refused.body())


class _Stream(StreamingResponse):
    """A stream that gives up what it has not sent, also where the client goes before it begins."""

    def __init__(self, lines: AsyncIterator[str], leave: Callable[[], None]) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._leave = leave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


def make_app(asker: Asker, service: Service, config: ServeConfig) -> FastAPI:
    """Return the application; it closes the service when it ends."""
    desk = Desk(asker, service, config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.close)

    app = FastAPI(title="dps serve", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, key=config.key, limits=config.limits, count=desk.metrics.request)

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatAsked, request: Request) -> Response:
        return await desk.answer(asked, request)

    @app.post("/v1/completions")
    async def complete(asked: CompletionAsked, request: Request) -> Response:
        return await desk.answer(asked, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        about = {"id": desk.front.name, "object": "model", "created": 0, "owned_by": "dps"}
        policy = {"policy": asker.name, "ladder": asker.run.policy.ladder.texts(), "aggregator": asker.aggregator}
        return {"object": "list", "data": [about | {"dps": policy}]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != desk.front.name:
            raise Refused(404, f"Expected the model {desk.front.name}, got {name!r}.", "model_not_found", "model")
        return (await models())["data"][0]

    @app.get("/health")
    async def health() -> Response:
        alive = service.alive
        return JSONResponse({"status": "ok" if alive else "the sampling has ended"}, status_code=200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(desk.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _understood(error).response()

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return Refused(error.status_code, str(error.detail)).response()

    return app


def _understood(error: RequestValidationError) -> Refused:
    """Return one sentence about the first thing that is wrong with a request."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or None
    if first["type"] == "extra_forbidden":
        return Refused(400, f"Unknown field {place}: leave it out.", "unknown_field", place)
    if first["type"] == "json_invalid":
        return Refused(400, "The body is no JSON.", "invalid_json")
    message = first["msg"].removeprefix("Value error, ")
    return Refused(400, message if place is None else f"{place}: {message}", None, place)


def _result(future: asyncio.Future[Any]) -> Any:
    """Return what has come; Refused where it was given up or went wrong."""
    try:
        return future.result()
    except asyncio.CancelledError:
        raise Refused(503, "The server is ending.", "ending") from None
    except Exception as error:
        message = str(error) if isinstance(error, InputError) else "Sampling failed; the server's log says why."
        raise Refused(500, message, "sampling_failed") from error


def _line(piece: dict[str, Any]) -> str:
    return f"data: {json.dumps(piece)}\n\n"


async def _until_gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
