"""Coroutines at work in a thread of their own, while the caller goes on in plain Python."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

Unit = TypeVar("Unit")
Result = TypeVar("Result")

END_S = 5.0  # for what is cancelled to end


@contextmanager
def background_loop(
    name: str, cleanup: Callable[[], Awaitable[None]]
) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a daemon thread; at the end all is cancelled, then `cleanup` runs."""

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await cleanup()
        await asyncio.get_running_loop().shutdown_default_executor()  # it looks up host names

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=name, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        wait([asyncio.run_coroutine_threadsafe(end(), loop)], END_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(END_S)
        if not thread.is_alive():
            loop.close()


def as_completed(
    loop: asyncio.AbstractEventLoop,
    units: Iterable[Unit],
    work: Callable[[Unit], Coroutine[Any, Any, Result]],
    *,
    ahead: int,
    stop: Callable[[], None],
    grace_s: float,
) -> Iterator[tuple[int, Result]]:
    """Yield (place, result of `work(unit)`) of each unit, as they are done.

    `units` is read in the caller's thread, never more than `ahead` units beyond what was yielded.
    When a work or `units` raises, or on Ctrl-C, `stop` is called in the loop: it cancels what
    still waits for its turn. What is on its way gets `grace_s` seconds; whatever is there by then
    is yielded, and then the exception is raised.
    """
    done: SimpleQueue[Future[Result]] = SimpleQueue()
    places: dict[Future[Result], int] = {}
    numbered = enumerate(units)
    try:
        while True:
            while len(places) < ahead and (following := next(numbered, None)) is not None:
                future = asyncio.run_coroutine_threadsafe(work(following[1]), loop)
                places[future] = following[0]
                future.add_done_callback(done.put)
            if not places:
                return
            future = done.get()
            if future.cancelled():  # by a work that failed, whose exception is still to come
                del places[future]
                continue
            result = future.result()
            yield places.pop(future), result
    except (Exception, KeyboardInterrupt):
        loop.call_soon_threadsafe(stop)
        for future in wait(places, grace_s).done:
            if not future.cancelled() and future.exception() is None:
                yield places[future], future.result()
        raise
