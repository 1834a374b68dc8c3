"""What people do with a feed, over REST, and what they must then see."""

import asyncio
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.eventually import eventually
from tests.fixtures.world import Person, World

COFFEE = [
    "Dialled in the grinder at last: eighteen grams in, thirty-six out, and the espresso sings.",
    "A slower pour made my pour-over coffee sweeter than any new beans could.",
    "Which water do you brew your filter coffee with? Mine is too hard and it tastes of chalk.",
    "Cold brew for the whole week: coarse grounds, sixteen hours in the fridge, one paper filter.",
]
ASTRONOMY = [
    "Saturn's rings were sharp through the small telescope tonight, even from the balcony.",
    "A meteor shower, no moon and a clear sky: we counted forty shooting stars before midnight.",
    "My first photograph of the Andromeda galaxy is blurry and I could not be happier.",
    "Learning the constellations one a week; tonight was Cassiopeia above the roof.",
]


def picture() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (320, 200), (200, 90, 40)).save(data, "JPEG")
    return data.getvalue()


@pytest.fixture(
    scope="session", params=["embedded_world", pytest.param("stack_world", marks=pytest.mark.stack)]
)
def world(request: pytest.FixtureRequest) -> World:
    """On the embedded backends, and on all real servers."""
    found: World = request.getfixturevalue(request.param)
    return found


async def test_a_followed_authors_post_with_an_image_arrives(
    world: World,
) -> None:
    author, reader = await world.sign_up("ada"), await world.sign_up("ben")
    answer = await world.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
    assert answer.status_code == 204
    await world.feed(reader)

    published = await world.client.post(
        "/post",
        data={"text": "Look at this sunset", "tags": "evening"},
        files={"media": ("sunset.jpg", picture(), "image/jpeg")},
        headers=author.headers,
    )
    assert published.status_code == 201, published.text
    post_id = published.json()["post_id"]

    async def shown() -> dict[str, Any]:
        items = (await world.feed(reader))["items"]
        return next((item for item in items if item["post_id"] == post_id), {})

    item = await eventually(shown, within_s=10)
    assert item["source"] == "social"
    assert item["author"]["username"] == author.username
    [media] = item["media"]
    assert (media["content_type"], media["width"], media["height"]) == ("image/jpeg", 320, 200)
    download = await world.download(media["url"])
    assert download.status_code == 200
    with Image.open(io.BytesIO(download.content)) as image:
        assert image.size == (320, 200)


async def test_three_likes_of_one_topic_move_discovery_towards_it(
    world: World,
) -> None:
    writer, reader = await world.sign_up("writer"), await world.sign_up("taster")
    coffee = [await world.post(writer, text) for text in COFFEE]
    stars = [await world.post(writer, text) for text in ASTRONOMY]

    async def embedded() -> bool:
        wanted = [int(post_id) for post_id in coffee + stars]
        return len(await world.stores.vectors().retrieve(wanted)) == len(wanted)

    await eventually(embedded)
    for post_id in coffee[:3]:
        answer = await world.client.put(f"/post/{post_id}/like", headers=reader.headers)
        assert answer.status_code == 204

    async def discovers_coffee() -> bool:
        page = await world.feed(reader, limit=50)
        found = [i["post_id"] for i in page["items"] if i["source"] == "discovery"]
        assert coffee[3] in found
        assert page["degraded"] == []
        similarity = await similarities(world, reader, page["feed_id"])
        assert similarity[coffee[3]] > max(similarity.get(post_id, -1.0) for post_id in stars)
        return True

    await eventually(discovers_coffee, within_s=20)
    taste = (await world.stores.features().user(int(reader.user_id))).interest_vector
    assert taste is not None
    assert abs(float(np.linalg.norm(taste)) - 1) < 1e-3


async def similarities(world: World, reader: Person, feed_id: str) -> dict[str, float]:
    answer = await world.client.get(f"/feed/{feed_id}/explain", headers=reader.headers)
    assert answer.status_code == 200, answer.text
    return {
        fate["post_id"]: fate["topic_similarity"]
        for fate in answer.json()["candidates"]
        if fate["topic_similarity"] is not None
    }


async def a_pair(world: World) -> tuple[Person, Person]:
    author, reader = await world.sign_up("author"), await world.sign_up("reader")
    await world.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
    await world.feed(reader)
    return author, reader


async def shows(world: World, reader: Person, post_id: str) -> bool:
    page = await world.feed(reader, limit=50)
    return post_id in {item["post_id"] for item in page["items"]}


async def test_a_reported_impression_is_gone_from_the_next_feed_at_once(world: World) -> None:
    author, reader = await a_pair(world)
    posts = [await world.post(author, f"thought number {n}") for n in range(30)]
    await eventually(lambda: shows(world, reader, posts[-1]))
    # Enough unseen posts are left, so seen ones are removed rather than penalised.
    answer = await world.client.post(
        "/impressions",
        json={"items": [{"post_id": posts[-1], "position": 0, "dwell_ms": 1200}]},
        headers=reader.headers,
    )
    assert answer.status_code == 202
    assert answer.json()["accepted"] == 1
    assert not await shows(world, reader, posts[-1])


async def test_a_deleted_post_is_gone_from_every_feed_at_once(world: World) -> None:
    author, reader = await a_pair(world)
    post_id = await world.post(author, "I may regret this one")
    await eventually(lambda: shows(world, reader, post_id))
    answer = await world.client.delete(f"/post/{post_id}", headers=author.headers)
    assert answer.status_code == 204
    assert not await shows(world, reader, post_id)
    gone = await world.client.get(f"/post/{post_id}", headers=reader.headers)
    assert gone.status_code == 404


async def test_a_deleted_post_is_gone_from_the_next_page_of_a_served_feed(world: World) -> None:
    author, reader = await a_pair(world)
    posts = [await world.post(author, f"page filler {n}") for n in range(12)]
    await eventually(lambda: shows(world, reader, posts[-1]))
    first = await world.feed(reader, limit=2)
    shown = {item["post_id"] for item in first["items"]}
    doomed = next(post_id for post_id in posts if post_id not in shown)
    await world.client.delete(f"/post/{doomed}", headers=author.headers)
    rest = await all_pages(world, reader, first)
    assert doomed not in {item["post_id"] for item in rest}


async def test_a_blocked_author_vanishes_at_once_in_both_directions(world: World) -> None:
    author, reader = await a_pair(world)
    post_id = await world.post(author, "you will not want to read this")
    await eventually(lambda: shows(world, reader, post_id))
    answer = await world.client.put(f"/user/{author.user_id}/block", headers=reader.headers)
    assert answer.status_code == 204
    assert not await shows(world, reader, post_id)
    mine = await world.post(reader, "nor you this")
    assert (await world.client.get(f"/post/{mine}", headers=author.headers)).status_code == 404


async def test_an_unfollowed_author_leaves_the_social_feed_at_once(world: World) -> None:
    author, reader = await a_pair(world)
    post_id = await world.post(author, "so long, and thanks")
    await eventually(lambda: shows(world, reader, post_id))
    await world.client.delete(f"/user/{author.user_id}/follow", headers=reader.headers)
    items = (await world.feed(reader, limit=50))["items"]
    assert not [i for i in items if i["post_id"] == post_id and i["source"] == "social"]


async def test_following_fills_the_feed_with_what_was_posted_before(world: World) -> None:
    author, reader = await world.sign_up("early"), await world.sign_up("late")
    await world.feed(reader)
    post_id = await world.post(author, "published before anyone listened")
    await world.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)

    async def social() -> bool:
        items = (await world.feed(reader, limit=50))["items"]
        return any(i["post_id"] == post_id and i["source"] == "social" for i in items)

    await eventually(social, within_s=2)


async def all_pages(world: World, reader: Person, first: dict[str, Any]) -> list[dict[str, Any]]:
    items, page = list(first["items"]), first
    while page["next_cursor"]:
        page = await world.feed(reader, cursor=page["next_cursor"])
        items += page["items"]
    return items


async def test_pages_neither_repeat_nor_skip_while_others_post(world: World) -> None:
    authors = [await world.sign_up("many") for _ in range(8)]
    reader = await world.sign_up("scroller")
    for author in authors:
        await world.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
    await world.feed(reader)
    posts = [
        await world.post(author, f"entry {n} of {author.username}")
        for n in range(5)
        for author in authors
    ]
    await eventually(lambda: shows(world, reader, posts[-1]))

    first = await world.feed(reader, limit=7)
    stop = asyncio.Event()

    async def others_post() -> None:
        while not stop.is_set():
            await world.post(authors[0], "meanwhile")

    noise = asyncio.create_task(others_post())
    items = await all_pages(world, reader, first)
    stop.set()
    await noise

    shown = [item["post_id"] for item in items]
    assert len(shown) == len(set(shown))
    assert set(posts) <= set(shown)
    explained = await world.client.get(f"/feed/{first['feed_id']}/explain", headers=reader.headers)
    placed = [c for c in explained.json()["candidates"] if c["position"] is not None]
    assert [c["post_id"] for c in sorted(placed, key=lambda c: c["position"])] == shown


async def test_the_fate_of_every_candidate_can_be_explained(world: World) -> None:
    author, reader = await a_pair(world)
    post_id = await world.post(author, "why am I shown")
    await eventually(lambda: shows(world, reader, post_id))
    page = await world.feed(reader)
    one = await world.client.get(
        f"/feed/{page['feed_id']}/explain/{post_id}", headers=reader.headers
    )
    assert one.status_code == 200, one.text
    assert one.json()["verdict"] == "kept"
    other = await world.client.get(
        f"/feed/{page['feed_id']}/explain/{post_id}", headers=author.headers
    )
    assert other.status_code == 404
