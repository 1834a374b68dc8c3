"""An import puts lines into every store, skips what is bad, and may be repeated."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from argon2 import PasswordHasher
from PIL import Image

from cli.format import (
    FollowLine,
    ImpressionLine,
    LikeLine,
    Line,
    MediaItem,
    PostLine,
    UserLine,
)
from cli.importing import StrictStop
from cli.index import Index
from mesh.ids import created_ms
from mesh.packing import DIMENSIONS, Vector
from stores.mailboxes.port import Box
from stores.users.port import User
from tests.cli.conftest import Installation

NOW = datetime.now(UTC).replace(microsecond=0)


def user(name: str, **more: Any) -> UserLine:
    return UserLine(**{"id": f"{name}!", "username": name, **more})


def post(name: str, author: str, **more: Any) -> PostLine:
    fields = {"text": f"text of {name}", "created_at": NOW - timedelta(hours=3), **more}
    return PostLine(id=name, author=f"{author}!", **fields)


def like(who: str, what: str) -> LikeLine:
    return LikeLine(user=f"{who}!", post=what, at=NOW - timedelta(hours=1))


def shown(who: str, what: str, **more: Any) -> ImpressionLine:
    return ImpressionLine(user=f"{who}!", post=what, at=NOW - timedelta(hours=2), **more)


def unit(seed: int) -> Vector:
    vector = np.random.default_rng(seed).normal(size=DIMENSIONS)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


async def ids(installation: Installation) -> tuple[dict[str, int], dict[str, int]]:
    """feedmesh's ids of users by name and of posts by text."""
    users = await installation.stores.users().page(0, 100)
    posts = await installation.stores.posts().page(0, 100)
    return {u.username: u.user_id for u in users}, {p.text: p.post_id for p in posts}


async def test_every_store_gets_its_share(installation: Installation) -> None:
    file = installation.write(
        user("ada", display_name="Ada L.", password="correct-horse", created_at=NOW),
        user("bob"),
        FollowLine(follower="bob!", author="ada!"),
        post("p1", "ada", tags=("Coffee",), embedding=unit(1).tolist()),
        post("p2", "ada", created_at=NOW - timedelta(days=1), embedding=unit(2).tolist()),
        like("bob", "p1"),
        shown("bob", "p1", dwell_ms=9_000, position=2),
    )
    tally = await installation.load(file)
    assert installation.bad == []
    assert tally == {
        "user loaded": 2,
        "follow loaded": 1,
        "post loaded": 2,
        "like loaded": 1,
        "impression loaded": 1,
    }
    stores = installation.stores
    users, posts = await ids(installation)
    ada, bob, p1, p2 = users["ada"], users["bob"], posts["text of p1"], posts["text of p2"]

    credentials = await stores.users().credentials("ADA")
    assert credentials is not None
    assert credentials.user == User(ada, "ada", "Ada L.", NOW)
    assert PasswordHasher().verify(credentials.password_hash or "", "correct-horse")
    nobody = await stores.users().credentials("bob")
    assert nobody is not None
    assert nobody.password_hash is None

    stored = (await stores.posts().get([p1]))[p1]
    assert (stored.author_id, stored.tags, stored.like_count) == (ada, ("coffee",), 1)
    assert stored.created_at == NOW - timedelta(hours=3)
    assert created_ms(p1) == int(stored.created_at.timestamp() * 1000)
    assert (await stores.graph().neighborhood(bob)).following == [ada]
    assert await stores.posts().liked(bob, [p1, p2]) == {p1}
    (seen,) = await stores.impressions().seen(bob, 0, 10)
    assert (seen.post_id, seen.count) == (p1, 1)

    found = await stores.vectors().retrieve([p1, p2])
    np.testing.assert_allclose(found[p1], unit(1), atol=1e-6)
    features = await stores.features().posts([p1, p2])
    assert features[0] is not None
    assert features[1] is not None
    assert (features[0].like_count, features[0].viewer_count) == (1, 1)
    assert (features[1].like_count, features[1].viewer_count) == (0, 0)
    assert features[0].embedding is not None
    np.testing.assert_allclose(features[0].embedding, unit(1), atol=1e-6)
    assert {p1, p2} <= {post_id for post_id, _ in await stores.features().popular(1000)}
    assert {p1, p2} <= set(await stores.features().unproven(5000))

    author = await stores.features().user(ada)
    assert author.follower_count == 1
    assert 0 < author.avg_engagement_rate < 1
    reader = await stores.features().user(bob)
    assert reader.interest_vector is not None
    np.testing.assert_allclose(reader.interest_vector, unit(1), atol=1e-5)
    (affinity,) = await stores.features().affinities(bob, [ada])
    assert affinity > 0.3


async def test_posts_without_a_vector_are_embedded(installation: Installation) -> None:
    texts = ["A double espresso, please", "Saturn's rings in the telescope"]
    await installation.load(
        installation.write(user("ann"), *(post(text, "ann", text=text) for text in texts))
    )
    _, posts = await ids(installation)
    found = await installation.stores.vectors().retrieve(list(posts.values()))
    wanted = await installation.stores.embedder().embed(texts)
    for text, vector in zip(texts, wanted, strict=True):
        np.testing.assert_allclose(found[posts[text]], vector, atol=1e-4)


async def test_bad_lines_are_reported_by_number_and_the_others_loaded(
    installation: Installation,
) -> None:
    file = installation.write(
        user("cat"),
        "not json",
        "",
        post("c1", "nobody"),
        like("cat", "c2"),
        post("c2", "cat"),
        like("cat", "c2"),
        like("cat", "c1"),
        user("Cat", id="other!"),
        FollowLine(follower="cat!", author="other!"),
        post("c3", "cat", created_at=NOW + timedelta(days=1)),
        post("c4", "cat", created_at=datetime(2019, 12, 31, tzinfo=UTC)),
        "x" * (1 << 20) + "y",
        '{"kind": "poke"}',
    )
    tally = await installation.load(file)
    reasons = dict(line.removeprefix("world.jsonl:").split(": ", 1) for line in installation.bad)
    assert {int(number): reason for number, reason in reasons.items()} == {
        2: "Invalid JSON: expected ident at line 1 column 2",
        4: "author: no user 'nobody!' stands above or was imported before",
        5: "post: no post 'c2' stands above or was imported before",
        8: "post: no post 'c1' stands above or was imported before",
        9: "username: 'Cat' is taken by line 1",
        10: "user: no user 'other!' stands above or was imported before",
        11: "created_at: lies in the future",
        12: "created_at: lies before 2020-01-01, where ids begin",
        13: "is longer than 1 MiB",
        14: reasons["14"],
    }
    users, posts = await ids(installation)
    assert set(users) == {"cat"}
    assert set(posts) == {"text of c2"}
    assert tally["post loaded"] == tally["like loaded"] == tally["user loaded"] == 1
    assert (tally["line skipped"], tally["post skipped"], tally["like skipped"]) == (3, 3, 2)


async def test_a_name_that_somebody_has_is_a_bad_line(installation: Installation) -> None:
    await installation.load(installation.write(user("dan")))
    file = installation.write(
        user("eve"), user("Dan", id="dan2"), post("d1", "dan"), post("d2", "eve"), name="two.jsonl"
    )
    await installation.load(file)
    assert installation.bad == ["two.jsonl:2: username: 'Dan' is taken"]
    users, posts = await ids(installation)
    assert set(users) == {"dan", "eve"}
    assert set(posts) == {"text of d1", "text of d2"}


async def test_loading_again_changes_nothing(installation: Installation) -> None:
    lines: list[Line] = [
        user("fay", created_at=NOW),
        user("gus"),
        FollowLine(follower="gus!", author="fay!"),
        post("f1", "fay"),
        like("gus", "f1"),
        shown("gus", "f1"),
    ]
    first = await installation.load(installation.write(*lines))
    before = await ids(installation)
    # The same file is passed over; what it loaded is told again.
    assert await installation.load(installation.write(*lines, name="same.jsonl")) == first
    # Other content is read, and its users and posts are known.
    tally = await installation.load(installation.write(*lines, "", name="more.jsonl"))
    assert (tally["user known"], tally["post known"], tally["user loaded"]) == (2, 1, 0)
    assert await ids(installation) == before
    gus, f1 = before[0]["gus"], before[1]["text of f1"]
    assert (await installation.stores.posts().get([f1]))[f1].like_count == 1
    (seen,) = await installation.stores.impressions().seen(gus, 0, 10)
    assert seen.count == 1


async def test_a_file_with_bad_lines_is_read_again_when_what_it_wanted_is_there(
    installation: Installation,
) -> None:
    early = installation.write(user("hal"), post("h1", "ivy"), name="early.jsonl")
    await installation.load(early)
    assert len(installation.bad) == 1
    await installation.load(installation.write(user("ivy"), name="late.jsonl"))
    tally = await installation.load(early)
    assert len(installation.bad) == 1
    assert (tally["user known"], tally["post loaded"]) == (1, 1)


async def test_a_batch_that_was_cut_off_is_loaded_again_into_the_same_ids(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No times, so that they come from the moment when the import began.
    lines = (
        user("jon"),
        PostLine(id="j1", author="jon!", text="one"),
        LikeLine(user="jon!", post="j1"),
    )
    file = installation.write(*lines)

    def power_cut(*_: object) -> None:
        raise OSError("the power went")

    with monkeypatch.context() as patch:
        # The stores have the batch, the index does not.
        patch.setattr(Index, "commit", power_cut)
        with pytest.raises(OSError, match="power"):
            await installation.load(file)
    before = await ids(installation)
    assert len(before[1]) == 1
    await installation.load(file)
    assert await ids(installation) == before
    assert installation.bad == []


async def test_strict_stops_before_the_batch_of_the_first_bad_line(
    installation: Installation,
) -> None:
    file = installation.write(user("kim"), "oops", user("lou"))
    with pytest.raises(StrictStop) as stop:
        await installation.load(file, strict=True)
    assert stop.value.bad.number == 2
    assert await ids(installation) == ({}, {})


async def test_a_second_import_at_the_same_time_is_refused(installation: Installation) -> None:
    installation.settings.data_dir.mkdir(exist_ok=True)
    with (
        Index(installation.settings.data_dir / "imports.db"),
        pytest.raises(OSError, match="another import"),
    ):
        await installation.load(installation.write(user("max")))


async def test_readers_who_are_there_get_imported_posts(installation: Installation) -> None:
    await installation.load(installation.write(user("nan"), user("oli"), user("pam")))
    users, _ = await ids(installation)
    mailboxes = installation.stores.mailboxes()
    boxes = [Box("mailbox", users["oli"]), Box("authored", users["nan"])]
    for box in boxes:
        await mailboxes.finish_build(box, [])
    file = installation.write(
        *(FollowLine(follower=f"{reader}!", author="nan!") for reader in ("oli", "pam")),
        post("n1", "nan"),
        post("n2", "nan"),
        name="posts.jsonl",
    )
    await installation.load(file)
    _, posts = await ids(installation)
    newest = sorted(posts.values(), reverse=True)
    absent = Box("mailbox", users["pam"])
    assert await mailboxes.newest([*boxes, absent], 10) == [newest, newest, None]


async def test_a_new_follow_brings_earlier_posts(installation: Installation) -> None:
    await installation.load(installation.write(user("quy"), user("ray"), post("q1", "quy")))
    users, posts = await ids(installation)
    box = Box("mailbox", users["ray"])
    await installation.stores.mailboxes().finish_build(box, [])
    follow = FollowLine(follower="ray!", author="quy!")
    await installation.load(installation.write(follow, name="follow.jsonl"))
    assert await installation.stores.mailboxes().newest([box], 10) == [list(posts.values())]


def picture(path: Path, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.new("RGB", size, "teal").save(buffer, "JPEG", exif=exif)
    path.write_bytes(buffer.getvalue())


async def test_media_lies_beside_the_file(installation: Installation) -> None:
    picture(installation.folder / "pictures" / "a.jpg")
    (installation.folder / "b.png").write_text("no picture")
    picture(installation.folder.parent / "outside.jpg")

    def with_media(name: str, file: str) -> PostLine:
        return post(name, "sue", media=(MediaItem(file=file),))

    file = installation.write(
        user("sue"),
        with_media("s1", "pictures/a.jpg"),
        with_media("s2", "b.png"),
        with_media("s3", "../outside.jpg"),
        with_media("s4", "missing.jpg"),
        with_media("s5", "pictures"),
    )
    await installation.load(file)
    reasons = [line.split(": ", 1)[1] for line in installation.bad]
    assert reasons[0].startswith("media: b.png: is damaged or none of")
    assert reasons[1:] == [
        "media: ../outside.jpg: lies outside of the folder",
        "media: missing.jpg: No such file or directory",
        "media: pictures: Is a directory",
    ]
    (stored,) = await installation.stores.posts().page(0, 10)
    (media,) = stored.media
    assert (media.content_type, media.width, media.height) == ("image/jpeg", 64, 48)
    data, content_type = await installation.stores.media().get(media.key)
    assert content_type == "image/jpeg"
    with Image.open(io.BytesIO(data)) as image:
        assert not image.getexif()
