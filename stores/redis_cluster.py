"""A client of a Redis Cluster: a client a master, and the map of which has which slot.

redis-py's own asyncio cluster client (7.4.1) is not used: each command of a transaction starts a
thread and an event loop, during which ours stands still; a cancelled command keeps its connection
for ever; where all connections are in use it fails instead of waiting; and its errors repeat keys
and values (docs/decisions/0014).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from opentelemetry.instrumentation.utils import suppress_instrumentation
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeout

Address = tuple[str, int]

# While slots move, a command may be sent on several times.
_ATTEMPTS = 5
_AGAIN_AFTER_S = 0.05
# While a master is away, nobody asks for the map more often.
_MAP_EVERY_S = 0.5
# Commands that name no key and concern every master.
_EVERYWHERE = frozenset({"FLUSHALL", "PING", "SCRIPT LOAD"})
_SCRIPTS = frozenset({"EVAL", "EVALSHA"})


class RedisCluster(Redis):
    """Sends each command to the master that has its key's slot; follows slots that move.

    Commands have one key, or several of one slot. A pipeline is one a master, sent at the same
    time; a transaction is of one slot.

    Args:
        seeds: Some of the nodes; the others are found through them.
        open_node: Makes the client of one node.
    """

    def __init__(self, seeds: Sequence[Address], open_node: Callable[[Address], Redis]) -> None:
        self._open_node = open_node
        self._seeds = list(seeds)
        self._nodes: dict[Address, Redis] = {}
        self._masters: dict[int, Address] = {}
        self._is_stale = True
        self._mapped_at = float("-inf")
        self._mapping = asyncio.Lock()
        super().__init__(connection_pool=self._node(self._seeds[0]).connection_pool)

    async def execute_command(self, *arguments: Any, **options: Any) -> Any:
        """As of one server. Of a command that names no key, the answer of one master."""
        if arguments[0] in _EVERYWHERE:
            return (await self._everywhere(*arguments, **options))[0]
        slot = slot_of(arguments)
        return await self.follow(slot, lambda node: _send(node, arguments, options))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """As of one server; commands of several slots are atomic only one by one."""
        return _ClusterPipeline(self, transaction, shard_hint)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Closes the connections to every node."""
        nodes = list(self._nodes.values())
        self._nodes.clear()
        await asyncio.gather(*(node.aclose() for node in nodes))

    async def master(self, slot: int) -> Redis:
        """The client of the master that has the slot.

        Raises:
            ClusterDownError: None has it.
        """
        if self._is_stale:
            await self._read_map()
        address = self._masters.get(slot)
        if address is None:
            self._is_stale = True
            raise ClusterDownError("no master has this slot")
        return self._node(address)

    async def masters(self) -> list[Redis]:
        """The clients of all masters."""
        if self._is_stale:
            await self._read_map()
        return [self._node(address) for address in dict.fromkeys(self._masters.values())]

    def suspect(self, error: BaseException) -> None:
        """Reads the map again before the next command, where the error may come of an old one."""
        if isinstance(error, (RedisConnectionError, RedisTimeout, ClusterDownError)):
            self._is_stale = True

    async def _everywhere(self, *arguments: Any, **options: Any) -> list[Any]:
        try:
            return await asyncio.gather(
                *(node.execute_command(*arguments, **options) for node in await self.masters())  # type: ignore[no-untyped-call]
            )
        except RedisError as error:
            self.suspect(error)
            raise

    async def follow(
        self, slot: int, send: Callable[[Redis], Awaitable[Any]], *, is_transaction: bool = False
    ) -> Any:
        """Sends to the slot's master, and to where that refers to."""
        node = await self.master(slot)
        for _ in range(_ATTEMPTS):
            try:
                return await send(node)
            except MovedError as error:
                self._masters[slot] = error.node_addr
                self._is_stale = True
                node = self._node(error.node_addr)
            except AskError as error:
                if not is_transaction:
                    return await self._ask(self._node(error.node_addr), send)
                # It can be sent when all of its keys have moved.
                await asyncio.sleep(_AGAIN_AFTER_S)
            except TryAgainError:
                await asyncio.sleep(_AGAIN_AFTER_S)
            except RedisError as error:
                self.suspect(error)
                raise
        raise ClusterDownError("a slot moved too often")

    async def _ask(self, node: Redis, send: Callable[[Redis], Awaitable[Any]]) -> Any:
        """Asks a node that is only just being given the slot."""
        async with node.client() as one_connection:
            with suppress_instrumentation():
                await one_connection.execute_command("ASKING")  # type: ignore[no-untyped-call]
            return await send(one_connection)

    async def _read_map(self) -> None:
        """Raises the last node's error when none answers."""
        now = asyncio.get_running_loop().time
        async with self._mapping:
            if not self._is_stale or now() < self._mapped_at + _MAP_EVERY_S:
                return
            failure: Exception = ClusterDownError("no node is known")
            for address in dict.fromkeys([*self._masters.values(), *self._seeds]):
                try:
                    with suppress_instrumentation():
                        slots = await self._node(address).execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
                except (RedisError, OSError) as error:
                    failure = error
                    continue
                self._masters = _masters(slots, address)
                self._is_stale, self._mapped_at = False, now()
                await self._forget_nodes()
                return
            raise failure

    async def _forget_nodes(self) -> None:
        known = {*self._masters.values(), *self._seeds}
        for address in [address for address in self._nodes if address not in known]:
            await self._nodes.pop(address).aclose()

    def _node(self, address: Address) -> Redis:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = self._open_node(address)
        return node


class _ClusterPipeline(Pipeline):
    def __init__(self, cluster: RedisCluster, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(
            cluster.connection_pool, cluster.response_callbacks, transaction, shard_hint
        )
        self._cluster = cluster

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = [(tuple(arguments), dict(options)) for arguments, options in self.command_stack]
        await self.reset()  # type: ignore[no-untyped-call]
        if not commands:
            return []
        slots = [slot_of(arguments) for arguments, _ in commands]
        if self.is_transaction:
            if len(set(slots)) > 1:
                raise RedisError("a transaction is of one slot")
            replies: list[Any] = await self._cluster.follow(
                slots[0],
                lambda node: _execute(node, commands, transaction=True),
                is_transaction=True,
            )
            return replies
        replies = await self._send(commands, slots)
        for number, reply in enumerate(replies):
            if isinstance(reply, (AskError, TryAgainError)):
                arguments, options = commands[number]
                replies[number] = await self._cluster.execute_command(*arguments, **options)
            elif raise_on_error and isinstance(reply, BaseException):
                self._cluster.suspect(reply)
                raise reply
        return replies

    async def _send(self, commands: Sequence[Any], slots: Sequence[int]) -> list[Any]:
        """What each command was answered, or the error, by a pipeline a master."""
        numbers: dict[Redis, list[int]] = {}
        for number, slot in enumerate(slots):
            numbers.setdefault(await self._cluster.master(slot), []).append(number)
        answers = await asyncio.gather(
            *(
                _execute(node, [commands[number] for number in mine], transaction=False)
                for node, mine in numbers.items()
            ),
            return_exceptions=True,
        )
        replies: list[Any] = [None] * len(commands)
        for mine, answer in zip(numbers.values(), answers, strict=True):
            for place, number in enumerate(mine):
                replies[number] = answer if isinstance(answer, BaseException) else answer[place]
        return replies


def slot_of(arguments: Sequence[Any]) -> int:
    """The slot of a command's first key."""
    name = arguments[0]
    if name in _SCRIPTS:
        key = arguments[3]
    elif name == "XREAD":
        key = arguments[arguments.index(b"STREAMS") + 1]
    else:
        key = arguments[1]
    return int(key_slot(key if isinstance(key, bytes) else str(key).encode()))


async def _send(node: Redis, arguments: Sequence[Any], options: Any) -> Any:
    return await node.execute_command(*arguments, **options)  # type: ignore[no-untyped-call]


async def _execute(node: Redis, commands: Sequence[Any], *, transaction: bool) -> list[Any]:
    async with node.pipeline(transaction=transaction) as pipe:
        for arguments, options in commands:
            pipe.execute_command(*arguments, **options)
        replies: list[Any] = await pipe.execute(raise_on_error=transaction)
        return replies


def _masters(slots: Sequence[Any], asked: Address) -> dict[int, Address]:
    """Of the answer to CLUSTER SLOTS; a node that does not know its own name gives an empty one."""
    masters: dict[int, Address] = {}
    for first, last, (host, port, *_), *_ in slots:
        address = (host.decode() if host else asked[0], int(port))
        masters.update(dict.fromkeys(range(first, last + 1), address))
    return masters
