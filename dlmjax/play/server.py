"""The addresses of `dlmjax play`: the page, its requests, and completions. Loopback only; every request needs the token, but for the
page's files, which hold nothing of a run.
"""

import asyncio
import contextlib
import dataclasses
import functools
import json
import pathlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dlmjax.errors import InputError, as_arguments
from dlmjax.files import as_json, parse_json
from dlmjax.flags import message_of
from dlmjax.play import completions, jobs
from dlmjax.play.fields import Fields, Limits, settings_of
from dlmjax.play.guard import Guard
from dlmjax.play.runs import MOST_ALTERNATIVES, PlayRun, Samplers
from dlmjax.play.traces import Traces, read_trace, trace_states
from dlmjax.play.worker import Busy, Job, Worker
from dlmjax.sampling import render_html
from dlmjax.sampling.samples import State
from dlmjax.seeds import SEEDS

HOST = "127.0.0.1"
STATIC = pathlib.Path(__file__).parent / "static"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png"}
BODY_SECONDS = 30  # for the body of a request to arrive
MOST_CONNECTIONS = 256
TRACE_POLICY = "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Refused(Exception):
    """An answer with a status that is not 200, as one line."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.headers = status, headers


@dataclasses.dataclass(frozen=True)
class Room:
    """What the server has: runs by name, limits, the worker, compiled samplers, traces."""

    runs: dict[str, PlayRun]
    limits: Limits
    worker: Worker
    samplers: Samplers
    traces: Traces

    def run_of(self, fields: Fields, name: str = "run") -> PlayRun:
        """The run that a request names; the only one where it names none. Raises InputError."""
        wanted = fields.text(name, None, 1000)
        if wanted is None and len(self.runs) == 1:
            return next(iter(self.runs.values()))
        if wanted not in self.runs:
            raise InputError(f"{name} is {wanted!r:.100}; give one of {', '.join(self.runs)}")
        return self.runs[wanted]

    def submit(self, request: Request, fields: Fields | None, work: Callable[[Job], Any]) -> Job:
        """Puts work into the queue, for the tab that the request names, or its connection. Raises Refused: the queue is full."""
        tab = fields.text("tab", None, 64) if fields is not None else None
        try:
            return self.worker.submit(Job(work, tab or str(request.client)))
        except Busy as busy:
            raise Refused(429, str(busy), {"Retry-After": str(busy.retry)}) from None


# --- reading and answering ------------------------------------------------------------------------------------------------------


async def body_of(request: Request, most: int) -> bytes:
    """The body, which is read no further than `most` bytes. Raises Refused."""
    too_large = Refused(413, f"the request is larger than {most:,} bytes; send less")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 15 or int(length) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"the request did not arrive within {BODY_SECONDS} seconds; send it again") from None
    return b"".join(parts)


async def fields_of(request: Request, limits: Limits, *known: str) -> Fields:
    """The fields of a JSON body. Raises InputError, Refused."""
    return Fields(await json_of(request, limits), known)


async def json_of(request: Request, limits: Limits) -> Any:
    """A JSON body. Raises InputError: not JSON within the bounds of `parse_json`; Refused."""
    content = await body_of(request, limits.body_bytes)
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the request is not readable JSON: {error}") from None


def answering(make: Callable[[Room, Request], Awaitable[Response]], room: Room, usual: bool = False) -> Callable:
    """An endpoint whose refusals are one line. usual: in the object of the usual servers of completions."""

    async def endpoint(request: Request) -> Response:
        try:
            return await make(room, request)
        except Refused as refused:
            status, message, headers = refused.status, str(refused), refused.headers
        except ClientDisconnect:
            status, message, headers = 400, "the connection was closed", None
        except Exception as error:
            message = message_of(error)
            if not message:
                raise
            status, headers = 400, None
        line = as_arguments(message, {})
        what = {"message": line, "type": "invalid_request_error", "param": None, "code": status} if usual else line
        return JSONResponse({"error": what}, status, headers)

    return endpoint


class JobStream(StreamingResponse):
    """Events of a job as they come; the job is cancelled where the connection closes."""

    def __init__(self, job: Job, lines: AsyncIterator[str], media_type: str):
        super().__init__(lines, media_type=media_type)
        self._job = job

    async def __call__(self, scope, receive, respond) -> None:
        try:
            await super().__call__(scope, receive, respond)
        finally:
            self._job.cancel()


async def result_of(request: Request, job: Job) -> Any:
    """The value at the end of a job, which is cancelled where the connection closes. Raises InputError: the job failed."""

    async def last() -> tuple[str, Any]:
        while True:
            kind, value = await job.outbox.get()
            if kind in ("end", "error"):
                return kind, value

    async def closed() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(last()), asyncio.create_task(closed())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise Refused(400, "the connection was closed")
        kind, value = tasks[0].result()
    finally:
        job.cancel()
        for task in tasks:
            task.cancel()
    if kind == "error":
        raise InputError(value)
    return value


# --- the page -------------------------------------------------------------------------------------------------------------------


async def page(room: Room, request: Request) -> Response:
    """`GET /`."""
    return await static(room, request, "index.html")


async def static(room: Room, request: Request, name: str = "") -> Response:
    """`GET /static/NAME`."""
    path = STATIC / (name or request.path_params["name"])
    if path.suffix not in KINDS or path.parent != STATIC or not path.is_file():
        raise Refused(404, "no such file")
    return Response(path.read_bytes(), media_type=KINDS[path.suffix])


async def runs(room: Room, request: Request) -> Response:
    """`GET /api/runs`."""
    limits = {name: getattr(room.limits, name) for name in ("length", "steps", "body_bytes", "trace_bytes", "positions")}
    return JSONResponse({"runs": [play.description for play in room.runs.values()], "limits": limits, "jobs": room.worker.count})


async def encode(room: Room, request: Request) -> Response:
    """`POST /api/encode`."""
    fields = await fields_of(request, room.limits, "run", "text", "tab")
    play, text = room.run_of(fields), fields.text("text", "", room.limits.characters)
    return JSONResponse({"tokens": await anyio.to_thread.run_sync(play.encode, text)})


async def sample(room: Room, request: Request) -> Response:
    """`POST /api/sample`: JSON lines."""
    fields = await fields_of(request, room.limits, "run", "canvas", "template", "length", "start_t", "seed", "settings", "tab")
    play = room.run_of(fields)
    settings = settings_of(fields.get("settings") or {}, room.limits)
    seed = fields.whole("seed", 0, 0, SEEDS - 1)
    canvas = await anyio.to_thread.run_sync(play.canvas_of, fields)
    own = {name: value for name, value in settings.items() if name not in ("stride", "stop")}
    steps = (await anyio.to_thread.run_sync(lambda: play.run.sample_settings(**own))).steps
    jobs.check_states(steps, canvas, room.limits)
    work = functools.partial(
        jobs.sampling, play=play, samplers=room.samplers, traces=room.traces, canvas=canvas, seed=seed, settings=settings
    )
    job = room.submit(request, fields, work)
    tokens = [
        play.token(int(token) if start < 1 else None, held=bool(held))
        for token, held, start in zip(canvas.tokens_BL[0], canvas.condition_mask_BL[0], canvas.start_BL[0], strict=True)
    ]
    first = {"type": "start", "job": job.id, "tokens": tokens, "steps": steps}
    return JobStream(job, _sample_lines(job, play, first), "application/x-ndjson")


async def _sample_lines(job: Job, play: PlayRun, first: dict[str, Any]) -> AsyncIterator[str]:
    yield as_json(first) + "\n"
    while True:
        kind, value = await job.outbox.get()
        if kind == "state":
            yield as_json(_state_line(play, value)) + "\n"
        elif kind == "end":
            yield as_json({"type": "end"} | value) + "\n"
            return
        else:
            yield as_json({"type": "error", "message": as_arguments(value, {})}) + "\n"
            return


def _state_line(play: PlayRun, state: State) -> dict[str, Any]:
    ids = play.ids(state.tokens_BL[0], state.masked_BL[0])
    return {
        "type": "state",
        "step": state.step,
        "steps": max(state.steps, state.step),
        "time": state.time,
        "ids": ids,
        "texts": ["" if token is None else play.text(token) for token in ids],
        "confidence": [round(float(value), 4) for value in state.confidence_BL[0]],
    }


async def cancel(room: Room, request: Request) -> Response:
    """`POST /api/cancel`."""
    fields = await fields_of(request, room.limits, "job", "tab")
    return JSONResponse({"cancelled": room.worker.cancel(fields.text("job", "", 100))})


async def alternatives(room: Room, request: Request) -> Response:
    """`POST /api/alternatives`."""
    fields = await fields_of(request, room.limits, "run", "canvas", "position", "temperature", "most", "tab")
    play = room.run_of(fields)
    items = fields.get("canvas")
    position = fields.whole("position", None, 0, max(0, len(items) - 1) if isinstance(items, list) else 0)
    if position is None:
        raise InputError("position is missing; give the position of a token, 0 first")
    if isinstance(items, list) and position < len(items):
        items = [*items[:position], {"id": None}, *items[position + 1 :]]
    canvas = play.canvas_of_tokens(items)
    temperature = fields.number("temperature", 1.0, 0.0, 1e6)
    most = fields.whole("most", MOST_ALTERNATIVES, 1, 1000)
    work = functools.partial(jobs.alternatives, play=play, canvas=canvas, position=position, temperature=temperature, most=most)
    return JSONResponse(await result_of(request, room.submit(request, fields, work)))


async def trace(room: Room, request: Request) -> Response:
    """`GET /api/trace/JOB`: the page that `--trace` writes, or with `form=json` its record."""
    job = request.path_params["job"]
    found = room.traces.get(job)
    if found is None:
        raise Refused(404, "no trace of this job is kept; the last samples have one")
    if request.query_params.get("form") == "json":
        return Response(json.dumps(found.to_json(), allow_nan=False), media_type="application/json")
    text = await anyio.to_thread.run_sync(render_html, found)
    headers = {"Content-Disposition": f'attachment; filename="trace-{job}.html"', "Content-Security-Policy": TRACE_POLICY}
    return Response(text, media_type="text/html", headers=headers)


async def open_trace(room: Room, request: Request) -> Response:
    """`POST /api/open`: the states of a saved trace."""
    row = request.query_params.get("row", "0")
    if not row.isdecimal() or len(row) > 9:
        raise InputError(f"row is {row!r:.60}; give a whole number")
    content = await body_of(request, room.limits.trace_bytes)

    def read() -> str:
        return as_json(trace_states(read_trace(content, room.limits), int(row)))

    return Response(await anyio.to_thread.run_sync(read), media_type="application/json")


# --- completions ----------------------------------------------------------------------------------------------------------------


async def models(room: Room, request: Request) -> Response:
    """`GET /v1/models`."""
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "dlmjax"} for name in room.runs]
    return JSONResponse({"object": "list", "data": data})


async def complete(room: Room, request: Request) -> Response:
    """`POST /v1/completions`."""
    values = await json_of(request, room.limits)
    model = Fields({"model": values.get("model")} if isinstance(values, dict) else values, ("model",))
    if "model" in model and model.get("model") not in room.runs:
        raise Refused(404, f"model is {model.get('model')!r:.100}; give one of {', '.join(room.runs)}")
    play = room.run_of(model, "model")
    ask = await anyio.to_thread.run_sync(completions.read_ask, values, play)
    work = functools.partial(completions.completing, play=play, samplers=room.samplers, ask=ask)
    job = room.submit(request, None, work)
    head = {
        "id": f"cmpl-{job.id}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": play.name,
        "system_fingerprint": f"step-{play.run.step}-{play.run.weights}",
    }
    if ask.stream:
        return JobStream(job, _completion_lines(job, head, ask.usage), "text/event-stream")
    return JSONResponse(head | await result_of(request, job))


async def _completion_lines(job: Job, head: dict[str, Any], usage: bool) -> AsyncIterator[str]:
    while True:
        kind, value = await job.outbox.get()
        if kind == "text":
            index, text, reason = value
            choice = {"text": text, "index": index, "logprobs": None, "finish_reason": reason}
            yield f"data: {as_json(head | {'choices': [choice]})}\n\n"
        elif kind == "end":
            if usage:
                yield f"data: {as_json(head | {'choices': [], 'usage': value['usage']})}\n\n"
            yield "data: [DONE]\n\n"
            return
        else:
            error = {"message": as_arguments(value, {}), "type": "invalid_request_error", "param": None, "code": 400}
            yield f"data: {as_json({'error': error})}\n\n"
            return


# --- the server -----------------------------------------------------------------------------------------------------------------


def application(room: Room, token: str, port: int) -> Guard:
    """The ASGI application."""

    def route(path: str, make: Callable, *methods: str, usual: bool = False) -> Route:
        return Route(path, answering(make, room, usual), methods=list(methods))

    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the server met a defect, which its terminal shows"}, 500)

    async def unknown(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        return JSONResponse({"error": f"{request.method} {request.url.path[:100]} is not provided"}, status)

    routes = [
        route("/", page, "GET"),
        route("/static/{name}", static, "GET"),
        route("/api/runs", runs, "GET"),
        route("/api/encode", encode, "POST"),
        route("/api/sample", sample, "POST"),
        route("/api/cancel", cancel, "POST"),
        route("/api/alternatives", alternatives, "POST"),
        route("/api/trace/{job}", trace, "GET"),
        route("/api/open", open_trace, "POST"),
        route("/v1/models", models, "GET", usual=True),
        route("/v1/completions", complete, "POST", usual=True),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={404: unknown, 405: unknown, 500: failed}), token, port)


def bind(port: int) -> socket.socket:
    """A socket on loopback. Raises InputError: the port is taken."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
        bound.listen()  # a client that reads the printed address is not refused
    except OSError as error:
        bound.close()
        raise InputError(f"--port {port} cannot be used ({error.strerror}); give another one, or 0 for a free one") from None
    return bound


def serve(runs: dict[str, PlayRun], limits: Limits, bound: socket.socket, *, waiting: int, said: Callable[[str, str], None]) -> None:
    """Answers requests until it is interrupted. said(address, token): called before the first one."""
    token, port = secrets.token_urlsafe(24), bound.getsockname()[1]
    worker = Worker(waiting=waiting, each=max(1, waiting // 4))
    room = Room(runs, limits, worker, Samplers(), Traces())
    config = uvicorn.Config(
        application(room, token, port),
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=1,
    )
    worker.start()
    said(f"http://{HOST}:{port}", token)
    with contextlib.closing(worker), contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[bound])
