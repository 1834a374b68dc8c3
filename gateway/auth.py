"""POST /auth/token, and who is asking: what every other endpoint begins with."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.security import OAuth2PasswordBearer, OAuth2PasswordRequestForm

from gateway import passwords
from gateway.backends import Here
from gateway.problems import BadRequest, UnsupportedMediaType, responses
from gateway.schemas import Token
from mesh import telemetry
from mesh.errors import Unauthenticated

router = APIRouter(tags=["auth"])
# auto_error would answer before the address is counted.
_bearer = OAuth2PasswordBearer("/auth/token", auto_error=False)


def address_of(request: Request) -> str:
    """The client's address, as the server sees it or a trusted proxy told it."""
    return request.client.host if request.client is not None else "unknown"


async def require_form(request: Request) -> None:
    """Raises `UnsupportedMediaType` for a body that is no form."""
    _require(request, "application/x-www-form-urlencoded", "multipart/form-data")


async def require_json(request: Request) -> None:
    """Raises `UnsupportedMediaType` for a body that is not JSON."""
    _require(request, "application/json")


def media_type(request: Request) -> str:
    """The body's media type without parameters, in lower case; empty when it is not told."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _require(request: Request, *accepted: str) -> None:
    if media_type(request) not in accepted:
        raise UnsupportedMediaType(f"The body has to be {' or '.join(accepted)}.")


async def _user_id(
    request: Request, here: Here, token: Annotated[str | None, Depends(_bearer)]
) -> int:
    try:
        if token is None:
            raise Unauthenticated("This needs a bearer token; POST /auth/token gives one.")
        user_id = await here.identities.user_id(token)
    except Unauthenticated:
        await here.limits.request(address_of(request))
        raise
    telemetry.annotate(here.trace_users.attributes(user_id))
    await here.limits.request(address_of(request), user_id)
    return user_id


# The user whose token came with the request.
Me = Annotated[int, Depends(_user_id)]


@router.post(
    "/auth/token",
    dependencies=[Depends(require_form)],
    responses=responses(Unauthenticated, BadRequest, UnsupportedMediaType, public=True),
)
async def log_in(
    request: Request, here: Here, form: Annotated[OAuth2PasswordRequestForm, Depends()]
) -> Token:
    """Logs in with a username and a password (OAuth2 password flow)."""
    await here.limits.login(address_of(request))
    found = await here.users.credentials(form.username)
    right = await passwords.matches(found.password_hash if found else None, form.password)
    if found is None or not right:
        raise Unauthenticated("The username or the password is wrong.")
    return Token(access_token=here.tokens.issue(found.user.user_id), expires_in=here.tokens.ttl_s)
