"""A replica whose accelerator is simulated: HTTP is real, encodes and clicks only take their time.

    python bench/scaling/stub_replica.py --host 127.0.1.1 --port 9090 --encode 0.030 --click 0.005

One thing at a time, clicks before encodes, but after eight clicks in a row an encode that waits; a photo is known by
its task's id. `/warm` makes one known without taking time, so that a measurement can begin with annotators at work.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import deque
from collections.abc import AsyncIterator

import orjson
from aiohttp import web

from backend.executor import MAX_OVERTAKING_CLICKS

ENCODED = "X-Encoded"
"""Header of answers for which the photo had to be encoded."""

Job = tuple[float, asyncio.Future[None]]


class Device:
    """Does one thing at a time, each for the given time."""

    def __init__(self) -> None:
        self._clicks: deque[Job] = deque()
        self._encodes: deque[Job] = deque()
        self._work = asyncio.Event()

    async def click(self, seconds: float) -> None:
        await self._done(self._clicks, seconds)

    async def encode(self, seconds: float) -> None:
        await self._done(self._encodes, seconds)

    async def _done(self, queue: deque[Job], seconds: float) -> None:
        ended = asyncio.get_running_loop().create_future()
        queue.append((seconds, ended))
        self._work.set()
        await ended

    async def run(self) -> None:
        """Work without end. Times add up exactly: what the event loop oversleeps is not lost to the device."""
        loop, in_a_row, free_at = asyncio.get_running_loop(), 0, 0.0
        while True:
            if not (self._clicks or self._encodes):
                self._work.clear()
                await self._work.wait()
                free_at = loop.time()
            is_click = bool(self._clicks) and not (self._encodes and in_a_row >= MAX_OVERTAKING_CLICKS)
            in_a_row = in_a_row + 1 if is_click else 0
            seconds, ended = (self._clicks if is_click else self._encodes).popleft()
            free_at += seconds
            await asyncio.sleep(max(0.0, free_at - loop.time()))
            if not ended.done():  # the client may have disconnected
                ended.set_result(None)


def build(encode: float, click: float) -> web.Application:
    """The server; seconds for an encode and a click."""
    known: set[int] = set()
    coming: dict[int, asyncio.Task[None]] = {}
    device = Device()

    async def look(task: int) -> None:
        await device.encode(encode)
        known.add(task)
        del coming[task]

    async def predict(request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        task, clicks = body["tasks"][0]["id"], len(body["params"]["context"]["result"])
        is_new = task not in known
        if is_new:
            if task not in coming:
                coming[task] = asyncio.create_task(look(task))
            await asyncio.shield(coming[task])
        await device.click(click * (clicks if is_new else 1))
        return web.json_response({"results": [{"result": []}]}, headers={ENCODED: str(int(is_new))})

    async def warm(request: web.Request) -> web.Response:
        known.add(orjson.loads(await request.read())["tasks"][0]["id"])
        return web.json_response({"kept": len(known)})

    async def ready(_: web.Request) -> web.Response:
        return web.json_response({"status": "READY"})

    async def work(app: web.Application) -> AsyncIterator[None]:
        working = asyncio.create_task(device.run())
        yield
        working.cancel()

    app = web.Application(client_max_size=8 << 20)
    app.cleanup_ctx.append(work)
    app.add_routes([web.post("/predict", predict), web.post("/warm", warm), web.get("/ready", ready)])
    return app


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090)
    parser.add_argument("--encode", type=float, required=True, help="seconds")
    parser.add_argument("--click", type=float, required=True, help="seconds")
    options = parser.parse_args()
    app = build(options.encode, options.click)
    web.run_app(app, host=options.host, port=options.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
