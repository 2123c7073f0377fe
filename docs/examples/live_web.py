"""A web service that streams new records to browsers as they are appended, by server-sent events.

pip install starlette uvicorn
python live_web.py DIRECTORY [PORT]        then open http://127.0.0.1:PORT, and append to the topic "clicks" elsewhere
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Route

import streamcore as sc

PAGE = """<!doctype html><meta charset="utf-8"><title>clicks</title><h1>clicks</h1><pre id="log"></pre>
<script>new EventSource("/events").onmessage = event => log.textContent = event.data + "\\n" + log.textContent;</script>
"""


async def events(store: sc.Store) -> AsyncIterator[str]:
    """Each record from now on. A consumer without a group: every browser gets everything, and no thread of its own."""
    async with store.consumer("clicks", start="latest") as consumer:
        yield ": you see what comes from now on\n\n"
        async for record in consumer:
            shown = {"offset": record.offset, "at": record.timestamp.isoformat(), "value": record.value.decode()}
            yield f"data: {json.dumps(shown)}\n\n"


def application(path: str) -> Starlette:
    """The service over the store in a directory."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with sc.open(path) as store:
            if "clicks" not in [topic.name for topic in store.topics()]:
                store.create_topic("clicks")
            app.state.store = store
            yield

    async def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(events(request.app.state.store), media_type="text/event-stream")

    async def page(request: Request) -> HTMLResponse:
        return HTMLResponse(PAGE)

    return Starlette(routes=[Route("/", page), Route("/events", stream)], lifespan=lifespan)


if __name__ == "__main__":
    uvicorn.run(application(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]) if len(sys.argv) > 2 else 8000)
