"""Which errors of TiDB go away by themselves, and when the transaction is tried again."""

import random
from collections.abc import Iterator

from pymysql.constants import CR, ER
from sqlalchemy.exc import DBAPIError

# The transaction was rolled back, also when it is its commit that fails so: it met another one, or
# a change of the schema.
_ROLLED_BACK = frozenset(
    {
        ER.LOCK_WAIT_TIMEOUT,
        ER.LOCK_DEADLOCK,
        8002,  # SELECT FOR UPDATE met a write
        8022,  # the commit failed and was rolled back
        8027,  # the schema's lease is over
        8028,  # the schema has changed
        9007,  # write conflict
    }
)
# A part of the cluster is away or busy, or the server, or the way to it.
_AWAY = frozenset(
    {
        ER.SERVER_SHUTDOWN,
        *(CR.CR_CONN_HOST_ERROR, CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST),
        *(9001, 9002, 9003, 9004, 9005),
    }
)
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
_ATTEMPTS = 12
_NAMES: dict[int, str] = {
    number: name for name, number in (vars(ER) | vars(CR)).items() if isinstance(number, int)
}


def pauses() -> Iterator[float | None]:
    """Seconds to wait after each attempt, should it fail; None after the last, some 5 s later."""
    for number in range(_ATTEMPTS - 1):
        yield min(_FIRST_PAUSE_S * 2**number, _LONGEST_PAUSE_S) * random.uniform(0.5, 1)
    yield None


def helps(error: DBAPIError, is_committing: bool) -> bool:
    """Whether the transaction may be tried again.

    Args:
        error: How it ended.
        is_committing: Whether its commit had been sent. If so, an error that comes of the way to
            the server leaves open whether it is committed, and a second attempt could do it twice.
    """
    number = error.orig.args[0] if error.orig is not None and error.orig.args else None
    if number in _ROLLED_BACK:
        return True
    return not is_committing and (number in _AWAY or error.connection_invalidated)


def name(number: int) -> str:
    """What MySQL calls an error; empty for TiDB's own numbers."""
    return _NAMES.get(number, "")
