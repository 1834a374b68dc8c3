"""Users, posts, likes and logins over REST."""

import asyncio
import io
from datetime import datetime, timedelta

import httpx
import pytest
from PIL import Image

from gateway.tokens import Tokens
from stores.posts.sql import SqlPostStore
from stores.sql.database import Database
from tests.fixtures.world import PASSWORD, Person, World
from tests.gateway.helpers import changed, png, problem

NOBODY = "1"


@pytest.fixture
async def ada(world: World) -> Person:
    return await world.sign_up("ada")


@pytest.fixture
async def ben(world: World) -> Person:
    return await world.sign_up("ben")


# -- logging in -------------------------------------------------------------------------------


async def test_a_user_is_told_what_was_registered(world: World) -> None:
    answer = await world.client.post(
        "/user",
        json={"username": "Grace.Hopper", "password": PASSWORD, "display_name": " Grace "},
    )
    assert answer.status_code == 201
    body = answer.json()
    assert body.pop("user_id").isdigit()
    assert body == {"username": "Grace.Hopper", "display_name": "Grace"}
    again = await world.client.post(
        "/user", json={"username": "grace.hopper", "password": PASSWORD}
    )
    problem(again, 409, "already_exists")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("username", "a"),
        ("username", "has space"),
        ("username", "ext-0123"),
        ("username", None),
        ("password", "short"),
        ("password", 12345678),
        ("display_name", " "),
        ("admin", True),
    ],
)
async def test_a_sign_up_against_the_rules_names_the_field(
    world: World, field: str, value: object
) -> None:
    said = {"username": "somebody", "password": PASSWORD, field: value}
    body = problem(await world.client.post("/user", json=said), 422, "invalid_argument")
    assert [error["field"] for error in body["errors"]] == [field]


async def test_a_token_says_how_long_it_is_good_for(world: World, ada: Person) -> None:
    answer = await world.client.post(
        "/auth/token", data={"username": ada.username.upper(), "password": PASSWORD}
    )
    assert answer.json()["token_type"] == "bearer"
    assert answer.json()["expires_in"] == world.settings.jwt_ttl_s
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("username", ["", "nobody-at-all", None])
async def test_a_wrong_password_and_an_unknown_user_look_the_same(
    world: World, ada: Person, username: str | None
) -> None:
    said = {"username": ada.username if username is None else username, "password": "wrong-one"}
    answer = await world.client.post("/auth/token", data=said)
    if username == "":
        problem(answer, 422, "invalid_argument")
    else:
        body = problem(answer, 401, "unauthenticated")
        assert body["detail"] == "The username or the password is wrong."
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_login_that_is_no_form_is_unsupported(world: World) -> None:
    answer = await world.client.post("/auth/token", json={"username": "a", "password": "b"})
    problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("header", [None, "Bearer junk", "Basic YTpi", "Bearer "])
async def test_without_a_good_token_nothing_is_told(world: World, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = await world.client.get("/feed", headers=headers)
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_token_of_a_user_who_does_not_exist_is_refused(world: World) -> None:
    tokens: Tokens = world.app.state.backends.tokens
    headers = {"Authorization": f"Bearer {tokens.issue(int(NOBODY))}"}
    problem(await world.client.get("/feed", headers=headers), 401, "unauthenticated")


# -- people -----------------------------------------------------------------------------------


async def test_a_profile_counts_and_tells_how_you_stand_to_each_other(
    world: World, ada: Person, ben: Person
) -> None:
    for _ in range(2):
        answer = await world.client.put(f"/user/{ada.user_id}/follow", headers=ben.headers)
        assert answer.status_code == 204
        assert answer.content == b""
    profile = (await world.client.get(f"/user/{ada.user_id}", headers=ben.headers)).json()
    created = datetime.fromisoformat(profile.pop("created_at"))
    assert datetime.now(created.tzinfo) - created < timedelta(minutes=5)
    assert profile == {
        "user_id": ada.user_id,
        "username": ada.username,
        "display_name": ada.username,
        "follower_count": 1,
        "following_count": 0,
        "following": True,
        "blocking": False,
    }
    for _ in range(2):
        answer = await world.client.delete(f"/user/{ada.user_id}/follow", headers=ben.headers)
        assert answer.status_code == 204
    profile = (await world.client.get(f"/user/{ada.user_id}", headers=ben.headers)).json()
    assert profile["follower_count"] == 0


async def test_a_block_ends_following_and_forbids_it(
    world: World, ada: Person, ben: Person
) -> None:
    await world.client.put(f"/user/{ada.user_id}/follow", headers=ben.headers)
    assert (
        await world.client.put(f"/user/{ben.user_id}/block", headers=ada.headers)
    ).status_code == 204
    profile = (await world.client.get(f"/user/{ben.user_id}", headers=ada.headers)).json()
    assert profile["blocking"] is True
    assert profile["following_count"] == 0
    again = await world.client.put(f"/user/{ada.user_id}/follow", headers=ben.headers)
    problem(again, 403, "permission_denied")
    await world.client.delete(f"/user/{ben.user_id}/block", headers=ada.headers)
    again = await world.client.put(f"/user/{ada.user_id}/follow", headers=ben.headers)
    assert again.status_code == 204


@pytest.mark.parametrize("what", ["follow", "block"])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_neither_oneself_nor_nobody_can_be_followed_or_blocked(
    world: World, ada: Person, what: str, method: str
) -> None:
    async def ask(user_id: str) -> httpx.Response:
        return await world.client.request(method, f"/user/{user_id}/{what}", headers=ada.headers)

    problem(await ask(ada.user_id), 422, "invalid_argument")
    problem(await ask(NOBODY), 404, "not_found")
    body = problem(await ask("me"), 422, "invalid_argument")
    assert body["errors"][0]["field"] == "user_id"


async def test_an_unknown_user_is_not_found(world: World, ada: Person) -> None:
    problem(await world.client.get(f"/user/{NOBODY}", headers=ada.headers), 404, "not_found")
    problem(await world.client.get(f"/user/{NOBODY}/posts", headers=ada.headers), 404, "not_found")


async def test_a_users_posts_come_in_pages_newest_first(
    world: World, ada: Person, ben: Person
) -> None:
    posts = [await world.post(ada, f"note {n}") for n in range(5)]
    shown, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        answer = await world.client.get(
            f"/user/{ada.user_id}/posts", params=query, headers=ben.headers
        )
        page = answer.json()
        shown += [item["post_id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert shown == posts[::-1]
    await world.client.put(f"/user/{ben.user_id}/block", headers=ada.headers)
    answer = await world.client.get(f"/user/{ada.user_id}/posts", headers=ben.headers)
    assert answer.json() == {"items": [], "next_cursor": None}


# -- posts ------------------------------------------------------------------------------------


async def test_what_is_published_is_what_is_answered_and_read(
    world: World, ada: Person, ben: Person
) -> None:
    published = await world.client.post(
        "/post", json={"text": "On bread", "tags": ["#Baking"]}, headers=ada.headers
    )
    assert published.status_code == 201
    post = published.json()
    assert post["author"] == {
        "user_id": ada.user_id,
        "username": ada.username,
        "display_name": ada.username,
    }
    assert (post["text"], post["tags"], post["media"]) == ("On bread", ["baking"], [])
    assert (post["like_count"], post["liked"]) == (0, False)
    assert post["created_at"].endswith("Z")
    read = await world.client.get(f"/post/{post['post_id']}", headers=ben.headers)
    assert read.json() == post


async def test_images_are_stored_clean_and_served_for_ever(world: World, ada: Person) -> None:
    answer = await world.client.post(
        "/post",
        data={"text": "two pictures"},
        files=[("media", ("a.png", png(), "image/png")), ("media", ("b.png", png((8, 9)), ""))],
        headers=ada.headers,
    )
    assert answer.status_code == 201, answer.text
    media = answer.json()["media"]
    assert [(each["width"], each["height"]) for each in media] == [(40, 30), (8, 9)]
    download = await world.client.get(media[0]["url"])
    assert download.headers["content-type"] == media[0]["content_type"]
    assert download.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in download.headers["cache-control"]
    with Image.open(io.BytesIO(download.content)) as image:
        assert image.size == (40, 30)
    etag = {"If-None-Match": download.headers["etag"]}
    assert (await world.client.get(media[0]["url"], headers=etag)).status_code == 304
    head = await world.client.head(media[0]["url"])
    assert (head.status_code, head.content) == (200, b"")

    path = f"/post/{answer.json()['post_id']}"
    assert (await world.client.delete(path, headers=ada.headers)).status_code == 204
    problem(await world.client.get(media[0]["url"]), 404, "not_found")


async def test_a_text_that_is_called_a_picture_is_refused(world: World, ada: Person) -> None:
    answer = await world.client.post(
        "/post",
        data={"text": "x"},
        files={"media": ("a.png", b"not a picture", "image/png")},
        headers=ada.headers,
    )
    body = problem(answer, 422, "invalid_argument")
    assert body["errors"][0]["field"] == "media"


@pytest.mark.parametrize("path", ["../../etc/passwd", "ab/x.jpg", "%2e%2e/secret", "x" * 100])
async def test_only_media_keys_lead_to_files(world: World, path: str) -> None:
    problem(await world.client.get(f"/media/{path}"), 404, "not_found")


async def test_a_repeated_request_with_its_key_publishes_once(world: World, ada: Person) -> None:
    headers = {**ada.headers, "Idempotency-Key": "k1"}

    async def send(text: str) -> httpx.Response:
        return await world.client.post(
            "/post", data={"text": text}, files={"media": ("a.png", png())}, headers=headers
        )

    answers = await asyncio.gather(*(send("once") for _ in range(4)))
    assert {answer.status_code for answer in answers} == {201}
    await world.client.put(f"/post/{answers[0].json()['post_id']}/like", headers=ada.headers)
    answers.append(await send("once"))
    assert len({answer.text for answer in answers}) == 1
    problem(await send("something else"), 409, "failed_precondition")
    url = answers[0].json()["media"][0]["url"]
    assert (await world.client.get(url)).status_code == 200
    mine = (await world.client.get(f"/user/{ada.user_id}/posts", headers=ada.headers)).json()
    assert len(mine["items"]) == 1


async def test_an_overlong_idempotency_key_is_refused(world: World, ada: Person) -> None:
    headers = {**ada.headers, "Idempotency-Key": "k" * 201}
    answer = await world.client.post("/post", json={"text": "x"}, headers=headers)
    body = problem(answer, 422, "invalid_argument")
    assert body["errors"][0]["field"] == "idempotency-key"


async def test_only_its_author_deletes_a_post(world: World, ada: Person, ben: Person) -> None:
    path = f"/post/{await world.post(ada, 'mine')}"
    problem(await world.client.delete(path, headers=ben.headers), 403, "permission_denied")
    assert (await world.client.delete(path, headers=ada.headers)).status_code == 204
    problem(await world.client.delete(path, headers=ada.headers), 404, "not_found")
    problem(await world.client.get(path, headers=ada.headers), 404, "not_found")


async def test_five_megabytes_of_text_are_too_large(world: World, ada: Person) -> None:
    answer = await world.client.post("/post", json={"text": "x" * 5_000_000}, headers=ada.headers)
    problem(answer, 413, "too_large")


# -- likes ------------------------------------------------------------------------------------


async def test_a_like_counts_once_and_can_be_taken_back(
    world: World, ada: Person, ben: Person
) -> None:
    path = f"/post/{await world.post(ada, 'like me')}"

    async def seen_by_ben() -> tuple[int, bool]:
        post = (await world.client.get(path, headers=ben.headers)).json()
        return post["like_count"], post["liked"]

    for _ in range(2):
        answer = await world.client.put(f"{path}/like", headers=ben.headers)
        assert answer.status_code == 204
    assert await seen_by_ben() == (1, True)
    for _ in range(2):
        answer = await world.client.delete(f"{path}/like", headers=ben.headers)
        assert answer.status_code == 204
    assert await seen_by_ben() == (0, False)


async def test_what_cannot_be_seen_cannot_be_liked(world: World, ada: Person, ben: Person) -> None:
    path = f"/post/{await world.post(ada, 'not for ben')}"
    await world.client.put(f"/user/{ben.user_id}/block", headers=ada.headers)
    problem(await world.client.put(f"{path}/like", headers=ben.headers), 404, "not_found")
    nothing = f"/post/{NOBODY}/like"
    problem(await world.client.put(nothing, headers=ben.headers), 404, "not_found")
    problem(await world.client.delete(nothing, headers=ben.headers), 404, "not_found")


# -- the source of truth is away --------------------------------------------------------------


async def test_without_the_source_of_truth_a_write_is_refused_for_now(
    world: World, ada: Person
) -> None:
    away = Database("sqlite+aiosqlite:////nowhere/feed.db")
    with changed(world, posts=SqlPostStore(away)):
        answer = await world.client.post("/post", json={"text": "x"}, headers=ada.headers)
    await away.close()
    problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
