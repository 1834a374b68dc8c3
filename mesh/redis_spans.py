"""A CLIENT span for each command and each pipeline of a Redis client.

opentelemetry-instrumentation-redis 0.66b1 puts keys and values into the status of a failed pipeline
and the name of every command into its name, leaves cancelled commands without an error, and knows
the stable conventions in part only (docs/decisions/0009).
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.util.types import AttributeValue
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError, ResponseError

from mesh.db_spans import Attributes, Database, Operation

# The texts of a batch's commands are cut after so many characters.
_TEXT_LIMIT = 500
_PREFIX = re.compile(r"[A-Z]+(?= |$)")
_SCRIPTS = ("EVAL", "EVALSHA")

Arguments = Sequence[Any]


def server(connection: dict[str, Any]) -> dict[str, str | int]:
    """`server.address` and `server.port` of a connection with these arguments."""
    if "path" in connection:
        return {"server.address": connection["path"]}
    return {
        "server.address": connection.get("host", "localhost"),
        "server.port": connection.get("port", 6379),
    }


class LuaScript(str):
    """A Lua script, and what spans call it: what it does, such as "push posts"."""

    name: str

    def __new__(cls, name: str, text: str) -> "LuaScript":
        script = super().__new__(cls, text)
        script.name = name
        return script


def trace_commands(client: Redis, families: Collection[str]) -> None:
    """Makes every command, and every pipeline as a whole, a span below the current one.

    Args:
        client: From now on. `db.namespace` is the database that its connections begin with.
        families: What keys begin with, up to a colon, or are. Spans tell no more of a key, because
            the rest names people.
    """
    commands = _Commands(client.connection_pool.connection_kwargs, families)
    execute = client.execute_command

    async def execute_command(*arguments: Any, **options: Any) -> Any:
        if not is_instrumentation_enabled():
            return await execute(*arguments, **options)  # type: ignore[no-untyped-call]
        with commands.single(arguments):
            return await execute(*arguments, **options)  # type: ignore[no-untyped-call]

    def pipeline(transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _TracedPipeline(commands, client, transaction, shard_hint)

    client.execute_command = execute_command  # type: ignore[method-assign]
    client.pipeline = pipeline  # type: ignore[method-assign]


class _TracedPipeline(Pipeline):
    def __init__(
        self, commands: "_Commands", client: Redis, transaction: bool, shard_hint: str | None
    ) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, shard_hint)
        self._commands = commands

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        if not self.command_stack or not is_instrumentation_enabled():
            return await super().execute(raise_on_error)
        kind = "MULTI" if self.is_transaction or self.explicit_transaction else "PIPELINE"
        with self._commands.batch(kind, [arguments for arguments, _ in self.command_stack]):
            return await super().execute(raise_on_error)

    async def immediate_execute_command(self, *arguments: Any, **options: Any) -> Any:
        if not is_instrumentation_enabled():
            return await super().immediate_execute_command(*arguments, **options)  # type: ignore[no-untyped-call]
        with self._commands.single(arguments):
            return await super().immediate_execute_command(*arguments, **options)  # type: ignore[no-untyped-call]

    def annotate_exception(
        self, exception: Exception, number: int, command: Iterable[object]
    ) -> None:
        """Leaves the server's message as it is: redis-py would add the command, with its values."""


class _Commands:
    """Operations of one server, and how they are described."""

    def __init__(self, connection: dict[str, Any], families: Collection[str]) -> None:
        where = {"db.namespace": str(connection.get("db") or 0), **server(connection)}
        self._database = Database("redis", where, _status_code)
        # The longest first, as one may begin with another.
        names = "|".join(map(re.escape, sorted(families, key=len, reverse=True)))
        self._key = re.compile(f"(?:{names})(?=:|$)")

    def single(self, arguments: Arguments) -> Operation:
        return Operation(self._database, arguments[0], lambda: self._describe(arguments))

    def batch(self, kind: str, commands: Sequence[Arguments]) -> Operation:
        if len(commands) == 1:
            return self.single(commands[0])
        first = commands[0][0]
        is_uniform = all(arguments[0] == first for arguments in commands)
        name = f"{kind} {first}" if is_uniform else kind
        return Operation(self._database, name, lambda: self._describe_batch(name, commands))

    def _describe(self, arguments: Arguments) -> tuple[str, Attributes]:
        attributes: dict[str, AttributeValue] = {"db.query.text": self._text(arguments)}
        target = self._target(arguments)
        if arguments[0] in _SCRIPTS and isinstance(arguments[1], LuaScript):
            attributes["db.stored_procedure.name"] = target
        return f"{arguments[0]} {target}".rstrip(), attributes

    def _describe_batch(self, name: str, commands: Sequence[Arguments]) -> tuple[str, Attributes]:
        # Of commands that do the same to the same, the first speaks for all.
        kinds: dict[tuple[str, str], Arguments] = {}
        for arguments in commands:
            kinds.setdefault((arguments[0], self._target(arguments)), arguments)
        targets = {target for _, target in kinds}
        summary = f"{name} {targets.pop()}".rstrip() if len(targets) == 1 else name
        return summary, {
            "db.operation.batch.size": len(commands),
            "db.query.text": "; ".join(map(self._text, kinds.values()))[:_TEXT_LIMIT],
        }

    def _target(self, arguments: Arguments) -> str:
        """What a command is about: a script's name, or the family of its first known key."""
        script = arguments[1] if arguments[0] in _SCRIPTS else None
        if isinstance(script, LuaScript):
            return script.name
        return next(filter(None, map(self._family, arguments[1:])), "")

    def _text(self, arguments: Arguments) -> str:
        """The command as one would type it; of its arguments no more than families of keys."""
        shown = [self._pattern(argument) for argument in arguments[1:]]
        # A run of values says no more than one.
        words = [word for n, word in enumerate(shown) if word != "?" or shown[n - 1 : n] != ["?"]]
        return " ".join([str(arguments[0]), *words])

    def _pattern(self, argument: object) -> str:
        family = self._family(argument)
        return "?" if not family else family if argument == family else f"{family}:?"

    def _family(self, argument: object) -> str:
        found = self._key.match(argument) if isinstance(argument, str) else None
        return found[0] if found else ""


def _status_code(error: BaseException) -> str:
    """The prefix of the server's error: WRONGTYPE."""
    if isinstance(error, RedisError) and error.status_code:
        return str(error.status_code)
    prefix = _PREFIX.match(str(error)) if isinstance(error, ResponseError) else None
    return prefix[0] if prefix else ""
