"""The demo world in the stores."""

import pytest
from rich.progress import Progress

from local.demo.load import load
from local.demo.world import DEMO_TASTES, DEMO_USERNAME
from stores.mailboxes.timelines import Timelines
from tests.cli.conftest import Installation, silent


async def test_the_demo_world_loads_once_into_a_feed_to_look_at(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, settings = installation.stores, installation.settings
    await load(stores, settings, silent())
    me = await stores.users().credentials(DEMO_USERNAME)
    assert me is not None
    assert me.password_hash is not None
    around = await stores.graph().neighborhood(me.user.user_id)
    assert 20 <= len(around.following) <= 30
    newest = await Timelines(stores.mailboxes(), stores.posts()).recent_by_authors(
        around.following, 100
    )
    assert sum(map(len, newest.values())) > 60
    posts = await stores.posts().page(0, 1000)
    assert len(posts) == 600
    pictured = [post for post in posts if post.media]
    data, content_type = await stores.media().get(pictured[0].media[0].key)
    assert (content_type, data[:2]) == ("image/jpeg", b"\xff\xd8")

    taste = (await stores.features().user(me.user.user_id)).interest_vector
    assert taste is not None
    vectors = await stores.vectors().retrieve([post.post_id for post in posts])
    close = sorted(posts, key=lambda post: -float(vectors[post.post_id] @ taste))[:30]
    assert sum(post.tags[0] in DEMO_TASTES for post in close) > 15

    def never(*_: object) -> None:
        raise AssertionError("it was loaded before")

    monkeypatch.setattr(Progress, "add_task", never)
    await load(stores, settings, silent())
