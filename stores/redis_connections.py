"""redis-py's connections and pool, without the two ways in which they fail a cancelled caller.

They send through asyncio.wait_for, which in Python 3.11 loses a cancellation that comes just when
the sending is done: one in three under load, and with it every deadline and every stop. And
asyncio.Condition, for which callers wait while the pool is empty, forgets before Python 3.13 whom
to wake next when the one it has just woken is cancelled (cpython, issue 112202).
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection, SSLConnection
from redis.asyncio.connection import AbstractConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeout


class _Cancellable(AbstractConnection):
    """Sends within asyncio.timeout; everything else of redis-py's already does."""

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        if isinstance(command, str):
            command = command.encode()
        chunks = [command] if isinstance(command, bytes) else command
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command(chunks)
        except BaseException as error:
            # Half of the command may be on its way: nothing can follow it on this connection.
            await self.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisTimeout("sending took too long") from error
            if isinstance(error, OSError):
                raise RedisConnectionError(f"sending failed: {error}") from error
            raise


class _TcpConnection(_Cancellable, Connection):
    pass


class _TlsConnection(_Cancellable, SSLConnection):
    pass


class _UnixConnection(_Cancellable, UnixDomainSocketConnection):
    pass


_CLASSES: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


class CancellablePool(BlockingConnectionPool):
    """A pool whose callers may be cancelled at any moment; others then neither wait nor starve."""

    def __init__(
        self, *, connection_class: type[AbstractConnection] = Connection, **options: Any
    ) -> None:
        super().__init__(connection_class=_CLASSES[connection_class], **options)

    async def get_connection(
        self, command_name: str | None = None, *keys: Any, **options: Any
    ) -> AbstractConnection:
        try:
            connection: AbstractConnection = await super().get_connection()  # type: ignore[no-untyped-call]
            return connection
        except asyncio.CancelledError:
            # Perhaps a connection was just given back for this caller; if not, whoever wakes waits
            # on. Nobody holds the condition's lock across a suspension.
            async with self._condition:
                self._condition.notify()
            raise
