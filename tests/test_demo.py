"""The demo world: believable, the same for the same seed, and rich for the demo login."""

import io
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from PIL import Image

from local.demo.images import draw
from local.demo.world import (
    DEMO_PASSWORD,
    DEMO_TASTES,
    DEMO_USERNAME,
    TOPICS,
    World,
    build,
    match,
    texts,
)

NOW = datetime(2026, 5, 4, 15, 30, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module", params=[1, 20])
def world(request: pytest.FixtureRequest) -> World:
    return build(request.param, NOW)


def test_equal_seeds_give_equal_worlds_and_others_do_not(world: World) -> None:
    assert build(1, NOW) == build(1, NOW)
    assert build(1, NOW) != build(2, NOW)


def test_every_text_is_posted_once_within_two_weeks(world: World) -> None:
    assert len(TOPICS) == 24
    written = Counter((topic, text) for topic, lines in texts().items() for text in lines)
    assert Counter((post.topic, post.text) for post in world.posts) == written
    assert all(timedelta(minutes=2) < NOW - post.created_at < 15 * DAY for post in world.posts)
    assert all(post.tags[0] == post.topic and len(post.tags) <= 3 for post in world.posts)
    assert 110 < sum(post.image is not None for post in world.posts) < 190


def test_names_are_unique_and_people_older_than_their_posts(world: World) -> None:
    assert len({user.username.casefold() for user in world.users}) == len(world.users) == 300
    born = {user.id: user.created_at for user in world.users}
    assert all(born[post.author] < post.created_at for post in world.posts)


def test_authors_write_about_what_they_like(world: World) -> None:
    tastes = {user.id: user.tastes for user in world.users}
    suits = [match(tastes[post.author], post.topic) for post in world.posts]
    assert np.mean(suits) > 0.6


def test_the_graph_has_celebrities_and_no_loops(world: World) -> None:
    assert all(follower != author for follower, author in world.follows)
    assert len(set(world.follows)) == len(world.follows)
    followers = Counter(author for _, author in world.follows).most_common()
    assert 3 <= sum(count > len(world.users) / 2 for _, count in followers) <= 8
    assert np.median([count for _, count in followers]) < 40


def test_history_comes_after_what_it_is_about(world: World) -> None:
    posts = {post.id: post for post in world.posts}
    for shown in world.impressions:
        assert posts[shown.post].created_at < shown.at <= NOW
        assert posts[shown.post].author != shown.user
    seen = {(shown.user, shown.post): shown.at for shown in world.impressions}
    assert len(seen) == len(world.impressions)
    for user, post, at in world.likes:
        assert seen[user, post] <= at <= NOW


def test_people_like_what_suits_them(world: World) -> None:
    posts = {post.id: post for post in world.posts}
    tastes = {user.id: user.tastes for user in world.users}
    liked = {(user, post) for user, post, _ in world.likes}
    rates: dict[bool, list[bool]] = {True: [], False: []}
    for shown in world.impressions:
        suits = match(tastes[shown.user], posts[shown.post].topic)
        if suits in (0, 1):
            rates[suits == 1].append((shown.user, shown.post) in liked)
    assert np.mean(rates[True]) > 5 * np.mean(rates[False])
    assert 0.05 < len(world.likes) / len(world.impressions) < 0.3


def test_the_demo_login_has_a_history_but_an_unread_feed(world: World) -> None:
    (me,) = (user for user in world.users if user.username == DEMO_USERNAME)
    assert (me.tastes, me.password) == (DEMO_TASTES, DEMO_PASSWORD)
    following = {author for follower, author in world.follows if follower == me.id}
    assert 20 <= len(following) <= 30
    seen = {shown.post for shown in world.impressions if shown.user == me.id}
    assert len(seen) > 40
    assert all(NOW - shown.at > DAY / 2 for shown in world.impressions if shown.user == me.id)
    likes = [at for user, _, at in world.likes if user == me.id]
    assert len(likes) >= 8
    assert all(NOW - at > DAY - timedelta(minutes=10) for at in likes)
    unread = [post for post in world.posts if post.author in following and post.id not in seen]
    assert len(unread) > 40


@pytest.mark.parametrize("topic", TOPICS)
def test_pictures_are_jpegs_that_differ_by_seed(topic: str) -> None:
    first = draw(topic, 1)
    assert first == draw(topic, 1)
    assert first != draw(topic, 2)
    assert len(first) <= 60_000
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size) == ("JPEG", (800, 600))
