"""When a process of ours ends."""

import asyncio
import os
import signal
import threading

CHILD_VARIABLE = "FEED_CHILD"
# A child that has not ended so long after it was told to is stuck, and nobody may be left to
# kill it.
STUCK_AFTER_S = 30.0
_STDIN = 0


async def until_stopped() -> None:
    """Returns on SIGTERM, on SIGINT, or when the parent has gone; one waiter a process.

    With FEED_CHILD=1 in the environment, standard input is a pipe whose other end the parent holds,
    and its end means that the parent has gone, also by kill -9. Once this has returned, another
    signal ends the process at once, and a child that does not end is ended after 30 s.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def on_input() -> None:
        if not os.read(_STDIN, 4096):
            # The end of a pipe stays readable: without this the loop would spin on it.
            loop.remove_reader(_STDIN)
            stopped.set()

    is_child = os.environ.get(CHILD_VARIABLE) == "1"
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if is_child:
        loop.add_reader(_STDIN, on_input)
    try:
        await stopped.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        if is_child:
            loop.remove_reader(_STDIN)
            watchdog = threading.Timer(STUCK_AFTER_S, os._exit, args=(1,))
            watchdog.daemon = True
            watchdog.start()
