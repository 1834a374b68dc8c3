"""The demo world: made-up people with hidden tastes, what they posted, and what they liked.

Everything follows from a seed and a moment; nothing here does IO except reading the texts. The
model, so that a ranking trained on this history can be held against what made it:

Tastes. A user likes 2 or 3 of the 24 topics, with weights that add up to 1. The *match* of a user
and a post is the weight of its topic over the user's greatest weight, and at least
`KINDRED_MATCH` when the topic belongs to the same group as one of the user's (pottery and
knitting are both crafts): 1 for the favourite topic, 0 for something foreign.

Graph. Users follow in turn, each about `MEAN_FOLLOWING` authors, drawn with a weight of
(0.1 + overlap of tastes) x (followers so far + 3)^0.8 x sqrt(how much they post): alike attracts
alike, and whoever has followers gets more. `CELEBRITIES` authors, who post a lot, are followed by
45 to 65 % of everybody on top of that.

Posts. Each text appears once, at a random waking hour of the last `POST_DAYS` days, by an author
drawn by (how much they post, log-normal) x (their taste for the topic). Every post has a hidden
*appeal*, from the standard normal distribution. One in four has an image.

History. In the last `HISTORY_DAYS` days every user opens the app some times, and sees about
`SESSION_POSTS` posts that they neither wrote nor saw before: followed authors' (55 %), of their
topics (30 %), or any (15 %); newer ones more often, with a half-life of two days. Then

    P(like | shown) = sigmoid(-4.2 + 3.6 match + 0.7 follows + 0.6 appeal + 0.5 image)

and the time on screen is log-normal around 1.2 s + 4 s x match + 25 ms a character x match. The
demo login's history ends a day ago, so that its first feed is full.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from local.demo.people import FIRST_NAMES, LAST_NAMES

DEMO_USERNAME = "demo"
DEMO_PASSWORD = "demo-password"  # noqa: S105  it is printed at the start
DEMO_TASTES = {"coffee": 0.45, "astronomy": 0.35, "python_programming": 0.2}

USERS = 300
CELEBRITIES = 4
MEAN_FOLLOWING = 22
DEMO_FOLLOWING = 25
POST_DAYS = 14
HISTORY_DAYS = 7
SESSION_POSTS = 10
SESSIONS_A_DAY = 0.9
DEMO_SESSIONS_A_DAY = 2.0
IMAGE_SHARE = 0.25
KINDRED_MATCH = 0.25

GROUPS = {
    "crafts": ("knitting", "pottery", "woodworking", "electronics_repair"),
    "outdoors": ("birdwatching", "bouldering", "cycling", "gardening", "trail_running"),
    "kitchen": ("baking", "coffee"),
    "arts": ("home_recording", "jazz", "photography"),
    "games": ("board_games", "chess"),
    "computing": ("databases", "python_programming"),
    "science": ("astronomy", "machine_learning", "robotics"),
    "society": ("language_learning", "personal_finance", "urban_planning"),
}
_GROUP_OF = {topic: group for group, topics in GROUPS.items() for topic in topics}
TOPICS = tuple(sorted(_GROUP_OF))

Floats = NDArray[np.float64]
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class DemoUser:
    """A person; `tastes` holds the weight of each liked topic, and adds up to 1."""

    id: str
    username: str
    display_name: str
    created_at: datetime
    tastes: Mapping[str, float]
    password: str | None = None


@dataclass(frozen=True, slots=True)
class DemoPost:
    """A post; `image` is the seed of its picture, None without one. `appeal` is hidden."""

    id: str
    author: str
    topic: str
    text: str
    tags: tuple[str, ...]
    created_at: datetime
    image: int | None
    appeal: float


@dataclass(frozen=True, slots=True)
class DemoImpression:
    """One showing of a post; `position` counts from 0 within the session."""

    user: str
    post: str
    at: datetime
    position: int
    dwell_ms: int


@dataclass(frozen=True, slots=True)
class World:
    """`follows` are (follower, author), `likes` are (user, post, at); all by the ids above."""

    users: tuple[DemoUser, ...]
    follows: tuple[tuple[str, str], ...]
    posts: tuple[DemoPost, ...]
    impressions: tuple[DemoImpression, ...]
    likes: tuple[tuple[str, str, datetime], ...]


@cache
def texts() -> dict[str, tuple[str, ...]]:
    """The written posts by topic."""
    folder = files("local.demo") / "texts"
    return {
        topic: tuple((folder / f"{topic}.txt").read_text(encoding="utf-8").splitlines())
        for topic in TOPICS
    }


def build(seed: int, now: datetime) -> World:
    """The world as of `now`, which must be aware; equal arguments give equal worlds."""
    random = np.random.default_rng(seed)
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)
    users = _users(random, now)
    tastes = np.array([[user.tastes.get(topic, 0.0) for topic in TOPICS] for user in users])
    activity = random.lognormal(0.0, 1.0, USERS)
    activity[0] = 0
    celebrities = 1 + random.permutation(USERS - 1)[:CELEBRITIES]
    activity[celebrities] = activity.max()
    follows = _follows(random, tastes, activity, celebrities)
    posts, authors = _posts(random, now, users, tastes, activity)
    impressions, likes = _history(
        random, now, users, posts, authors=authors, matches=_matches(tastes), follows=follows
    )
    edges = tuple(
        (users[reader].id, users[author].id) for reader, author in np.argwhere(follows).tolist()
    )
    return World(users, edges, posts, impressions, likes)


def match(tastes: Mapping[str, float], topic: str) -> float:
    """How well a topic suits a user, 0 to 1, as the module's docstring says."""
    kindred = any(_GROUP_OF[liked] == _GROUP_OF[topic] for liked in tastes)
    floor = KINDRED_MATCH if kindred else 0.0
    return max(tastes.get(topic, 0.0) / max(tastes.values()), floor)


# -- people ---------------------------------------------------------------------------------------


def _users(random: np.random.Generator, now: datetime) -> tuple[DemoUser, ...]:
    people = random.permutation(len(FIRST_NAMES) * len(LAST_NAMES))[: USERS - 1]
    ages = random.uniform(POST_DAYS + 1, 400, USERS)
    users = [_demo_user(now - ages[0] * _DAY)]
    taken = {DEMO_USERNAME}
    for number, person in enumerate(people.tolist(), start=1):
        first = FIRST_NAMES[person // len(LAST_NAMES)]
        last = LAST_NAMES[person % len(LAST_NAMES)]
        username = _username(random, first, last, taken)
        taken.add(username)
        users.append(
            DemoUser(
                id=f"demo-user-{number}",
                username=username,
                display_name=f"{first} {last}",
                created_at=_to_ms(now - ages[number] * _DAY),
                tastes=_tastes(random),
            )
        )
    return tuple(users)


def _demo_user(created_at: datetime) -> DemoUser:
    return DemoUser(
        id="demo-user-0",
        username=DEMO_USERNAME,
        display_name="Demo Reader",
        created_at=_to_ms(created_at),
        tastes=DEMO_TASTES,
        password=DEMO_PASSWORD,
    )


def _username(random: np.random.Generator, first: str, last: str, taken: set[str]) -> str:
    first, last = first.lower(), last.lower()
    forms = [
        f"{first}_{last}",
        f"{first}{last}",
        f"{first}_{last[0]}",
        f"{last}_{first}",
        f"{first}{random.integers(50, 100)}",
        f"{first[0]}_{last}",
    ]
    order: list[int] = random.permutation(len(forms)).tolist()
    return next(forms[i] for i in (*order, 0) if forms[i] not in taken)


def _tastes(random: np.random.Generator) -> dict[str, float]:
    """2 or 3 topics; a second one of the same group is likelier than chance."""
    first = TOPICS[random.integers(len(TOPICS))]
    chosen = [first]
    kindred = [topic for topic in GROUPS[_GROUP_OF[first]] if topic != first]
    if random.random() < 0.5:
        chosen.append(kindred[random.integers(len(kindred))])
    size = 2 + int(random.random() < 0.5)
    while len(chosen) < size:
        topic = TOPICS[random.integers(len(TOPICS))]
        if topic not in chosen:
            chosen.append(topic)
    weights = np.sort(random.dirichlet([3.0] * len(chosen)))[::-1]
    return dict(zip(chosen, weights.tolist(), strict=True))


def _matches(tastes: Floats) -> Floats:
    """`match` of every user and topic, shape (users, topics)."""
    groups = sorted(GROUPS)
    member = np.array([[_GROUP_OF[topic] == group for group in groups] for topic in TOPICS])
    kindred = (tastes > 0) @ member @ member.T
    relative = tastes / tastes.max(axis=1, keepdims=True)
    matches: Floats = np.maximum(relative, np.where(kindred, KINDRED_MATCH, 0.0))
    return matches


# -- the graph ------------------------------------------------------------------------------------


def _follows(
    random: np.random.Generator,
    tastes: Floats,
    activity: Floats,
    celebrities: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Who follows whom: [follower, author], shape (users, users)."""
    count = len(tastes)
    unit = tastes / np.linalg.norm(tastes, axis=1, keepdims=True)
    overlap = unit @ unit.T
    follows = np.zeros((count, count), dtype=bool)
    for author in celebrities.tolist():
        follows[:, author] = random.random(count) < random.uniform(0.45, 0.65)
    np.fill_diagonal(follows, False)
    for reader in random.permutation(count).tolist():
        wanted = round(float(random.lognormal(math.log(MEAN_FOLLOWING), 0.5)))
        if reader == 0:
            wanted = DEMO_FOLLOWING - int(follows[0].sum())
        weights = (0.1 + overlap[reader]) * (follows.sum(axis=0) + 3.0) ** 0.8
        weights *= np.sqrt(activity)
        weights[reader] = 0
        weights[follows[reader]] = 0
        wanted = min(max(wanted, 3), int(np.count_nonzero(weights)))
        chosen = random.choice(count, wanted, replace=False, p=weights / weights.sum())
        follows[reader, chosen] = True
    return follows


# -- posts ----------------------------------------------------------------------------------------


def _posts(
    random: np.random.Generator,
    now: datetime,
    users: Sequence[DemoUser],
    tastes: Floats,
    activity: Floats,
) -> tuple[tuple[DemoPost, ...], NDArray[np.int64]]:
    """The posts, oldest first, and the author's index of each."""
    drawn: list[tuple[datetime, int, str, str]] = []
    for topic_index, topic in enumerate(TOPICS):
        weights = activity * tastes[:, topic_index]
        if not weights.any():
            weights = activity
        lines = texts()[topic]
        writers = random.choice(len(users), len(lines), p=weights / weights.sum())
        drawn += [
            (_waking_moment(random, now), writer, topic, line)
            for writer, line in zip(writers.tolist(), lines, strict=True)
        ]
    drawn.sort()
    appeals = random.normal(size=len(drawn)).tolist()
    with_image = (random.random(len(drawn)) < IMAGE_SHARE).tolist()
    posts = tuple(
        DemoPost(
            id=f"demo-post-{number}",
            author=users[writer].id,
            topic=topic,
            text=text,
            tags=_tags(topic, text),
            created_at=at,
            image=number if with_image[number] else None,
            appeal=appeals[number],
        )
        for number, (at, writer, topic, text) in enumerate(drawn)
    )
    return posts, np.array([writer for _, writer, _, _ in drawn])


def _waking_moment(random: np.random.Generator, now: datetime) -> datetime:
    """Within the last POST_DAYS days, three times likelier between 7 and 23 h than at night."""
    while True:
        age = float(random.uniform(3 / 1440, POST_DAYS))
        at = _to_ms(now - age * _DAY)
        if 7 <= at.hour < 23 or random.random() < 1 / 3:
            return at


def _tags(topic: str, text: str) -> tuple[str, ...]:
    """The topic, and up to two more that the text itself bears out."""
    more = []
    if "?" in text:
        more.append("question")
    if re.search(r"\b(club|workshop|meets|open studio|join|free wheels|anyone curious)\b", text):
        more.append("meetup")
    if re.search(r"\b(beginners?|first time|learned|learning)\b", text):
        more.append("learning")
    more.append(_GROUP_OF[topic])
    return (topic, *more[:2])


# -- history --------------------------------------------------------------------------------------


def _history(
    random: np.random.Generator,
    now: datetime,
    users: Sequence[DemoUser],
    posts: Sequence[DemoPost],
    *,
    authors: NDArray[np.int64],
    matches: Floats,
    follows: NDArray[np.bool_],
) -> tuple[tuple[DemoImpression, ...], tuple[tuple[str, str, datetime], ...]]:
    created = np.array([(now - post.created_at) / _DAY for post in posts])  # age in days, now
    topics = np.array([TOPICS.index(post.topic) for post in posts])
    appeal = np.array([post.appeal for post in posts])
    image = np.array([post.image is not None for post in posts])
    length = np.array([len(post.text) for post in posts])
    activity = SESSIONS_A_DAY * random.lognormal(-0.125, 0.5, len(users))
    activity[0] = DEMO_SESSIONS_A_DAY
    impressions: list[DemoImpression] = []
    likes: list[tuple[str, str, datetime]] = []
    for reader, user in enumerate(users):
        followed, suits = follows[reader, authors], matches[reader, topics]
        chance = 1 / (1 + np.exp(4.2 - 3.6 * suits - 0.7 * followed - 0.6 * appeal - 0.5 * image))
        dwell = 1200 + suits * (4000 + 25 * length)
        fresh = authors != reader
        last_day = 1.0 if reader == 0 else 0.01
        sessions = random.poisson(activity[reader] * (HISTORY_DAYS - last_day))
        for age in np.sort(random.uniform(last_day, HISTORY_DAYS, sessions))[::-1].tolist():
            shown = _shown(random, created - age, fresh, followed, suits)
            fresh[shown] = False
            at = now - age * _DAY
            for position, post in enumerate(shown):
                dwell_ms = int(dwell[post] * random.lognormal(0, 0.5))
                impressions.append(
                    DemoImpression(user.id, posts[post].id, _to_ms(at), position, dwell_ms)
                )
                # The last page may have been left open until just now.
                at = min(at + timedelta(milliseconds=dwell_ms), now)
                if random.random() < chance[post]:
                    likes.append((user.id, posts[post].id, _to_ms(at)))
    impressions.sort(key=lambda impression: impression.at)
    likes.sort(key=lambda like: like[2])
    return tuple(impressions), tuple(likes)


def _shown(
    random: np.random.Generator,
    age: Floats,
    fresh: NDArray[np.bool_],
    followed: NDArray[np.bool_],
    suits: Floats,
) -> list[int]:
    """The posts of one session: a mix of three sources, newer ones more often."""
    there = fresh & (age > 0)
    recency = np.where(there, 0.5 ** (np.maximum(age, 0) / 2), 0)
    sources = [(0.55, recency * followed), (0.30, recency * suits), (0.15, recency)]
    weights = sum(share * each / each.sum() for share, each in sources if each.any())
    if isinstance(weights, int):
        return []
    size = min(int(random.poisson(SESSION_POSTS)), int(np.count_nonzero(weights)))
    chosen: list[int] = random.choice(
        len(weights), size, replace=False, p=weights / weights.sum()
    ).tolist()
    return chosen


def _to_ms(at: datetime) -> datetime:
    """Ids and stores keep milliseconds."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
