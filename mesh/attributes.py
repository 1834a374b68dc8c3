"""What feedmesh says on spans beside the conventions' own attributes, in one table.

Made into docs/telemetry.md by `make docs`. A test holds it against the spans that are really made.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute. `<...>` in a name stands for one of several words."""

    name: str
    type: str
    where: str
    meaning: str


@dataclass(frozen=True, slots=True)
class SpanKindOfOurs:
    """A kind of span, named as it appears; `{...}` stands for what varies."""

    name: str
    kind: str
    service: str
    meaning: str


SPANS = (
    SpanKindOfOurs("{method} {route}", "SERVER", "gateway", "one REST request"),
    SpanKindOfOurs(
        "stage {name}", "INTERNAL", "gateway", "one stage of GET /feed, with what stood in for it"
    ),
    SpanKindOfOurs(
        "{package.Service}/{Method}", "CLIENT", "the caller", "one attempt at a gRPC call"
    ),
    SpanKindOfOurs(
        "{package.Service}/{Method}", "SERVER", "the callee", "one gRPC call as it was handled"
    ),
    SpanKindOfOurs(
        "{OPERATION} {table or keys}", "CLIENT", "any", "one SQL statement, one Redis command or "
        "pipeline; one call of Qdrant (`query {collection}`) or Dgraph (`follow feed`)"
    ),
    SpanKindOfOurs("send {topic}", "PRODUCER", "workers, gateway", "an event into the event log"),
    SpanKindOfOurs(
        "process {topic}", "CONSUMER", "workers", "one consumer group's work for an event; for "
        "events of several traces a trace of its own, with links"
    ),
    SpanKindOfOurs(
        "embed texts", "INTERNAL", "workers", "the embedding model, for all posts that wait for it"
    ),
    SpanKindOfOurs(
        "push features", "INTERNAL", "workers", "changed features on their way to the feature "
        "server: a trace of its own, for many events"
    ),
    SpanKindOfOurs(
        "POST {path}", "CLIENT", "ranker_svc, gateway, workers", "one request to the feature server"
    ),
    SpanKindOfOurs("score candidates", "INTERNAL", "ranker_svc", "the ranking model"),
    SpanKindOfOurs(
        "score shadow", "INTERNAL", "ranker_svc", "a sampled request scored by the shadow model "
        "after the response: a trace of its own, linked to the request"
    ),
    SpanKindOfOurs(
        "measure recall", "INTERNAL", "candidate_svc", "a sampled search repeated exactly after "
        "the response: a trace of its own, linked to the request"
    ),
    SpanKindOfOurs(
        "prepare media", "INTERNAL", "gateway", "verifying and re-encoding an upload, in a thread"
    ),
    SpanKindOfOurs("store media", "INTERNAL", "gateway", "writing an upload to a folder"),
    SpanKindOfOurs(
        "S3/{Operation}", "CLIENT", "any", "one operation on media in a bucket; its attributes are "
        "those of HTTP clients, `aws.s3.bucket` and `aws.s3.key`"
    ),
    SpanKindOfOurs(
        "clean up media", "INTERNAL", "workers", "deleting media objects that no post shows"
    ),
    SpanKindOfOurs(
        "check password, hash password", "INTERNAL", "gateway", "argon2id, in a thread"
    ),
    SpanKindOfOurs(
        "append {kind}", "INTERNAL", "workers", "rows into the log of feeds, in a thread"
    ),
    SpanKindOfOurs(
        "tidy log", "INTERNAL", "workers", "one file a closed day, and forgetting old days"
    ),
    SpanKindOfOurs(
        "purge impressions", "INTERNAL", "workers", "forgetting what is older than 48 hours"
    ),
    SpanKindOfOurs(
        "purge idempotency keys", "INTERNAL", "workers", "forgetting what is older than a day"
    ),
)  # fmt: skip

_FEED = "GET /feed"
_STAGE = "stage"
_PROCESS = "process"

ATTRIBUTES = (
    Attribute("feed.id", "string", _FEED, "the feed's id, which `explain` takes"),
    Attribute("feed.candidates", "int", _FEED, "candidates retrieved"),
    Attribute("feed.length", "int", _FEED, "posts of the whole feed, over all its pages"),
    Attribute("feed.items", "int", _FEED, "posts on this page"),
    Attribute("feed.items.<source>", "int", _FEED, "of these, from social, discovery, popular"),
    Attribute("feed.degraded", "string[]", _FEED, "what was away, as the page says it"),
    Attribute("feed.is_degraded", "boolean", _FEED, "whether anything was; for tail sampling"),
    Attribute(
        "feed.model.version", "string", f"{_FEED}, {_STAGE} ranker, RankCandidates, "
        "score candidates, score shadow", "which model's scores these are"
    ),
    Attribute("feed.shadow.version", "string", "score shadow", "the model beside it"),
    Attribute(
        "feed.shadow.difference", "double", "score shadow",
        "mean distance of its scores from those that counted, 0 to 1"
    ),
    Attribute(
        "feed.shadow.overlap", "double", "score shadow",
        "share of the best 20 that are its best 20, too"
    ),
    Attribute("feed.identity.hit", "boolean", "REST requests", "the token's user was known lately"),
    Attribute("feed.impressions", "int", "POST /impressions", "impressions taken"),
    Attribute("feed.stage.name", "string", _STAGE, "as in metrics and in `degraded`"),
    Attribute("feed.stage.budget", "double", _STAGE, "its share of the feed's deadline, 0 to 1"),
    Attribute(
        "feed.stage.deadline_used", "double", _STAGE, "what it took of the feed's deadline"
    ),
    Attribute(
        "feed.stage.outcome", "string", _STAGE, "ok; stand_in when its fallback took its place; "
        "failed when there was none"
    ),
    Attribute(
        "feed.without.<backend>", "string", "where it was missed", "why the work went on without it"
    ),
    Attribute(
        "feed.breaker.open", "string", "where the call was made",
        "the backend that was not asked, as it keeps failing"
    ),
    Attribute("feed.reader.following", "int", f"{_STAGE} reader", "authors the reader follows"),
    Attribute(
        "feed.reader.has_taste", "boolean", f"{_STAGE} reader", "an interest vector is known"
    ),
    Attribute(
        "feed.candidates.in.<source>", "int", f"{_STAGE} filter, ranker, hydrator",
        "candidates that came in, by source"
    ),
    Attribute(
        "feed.candidates.out.<source>", "int", f"{_STAGE} social, discovery, filter; GetCandidates",
        "candidates that went on, by source"
    ),
    Attribute(
        "feed.mailbox.hit", "boolean", "GetCandidates", "the mailbox was there; else it was rebuilt"
    ),
    Attribute("feed.retrieval.recall", "double", "measure recall", "share of the exact nearest"),
    Attribute("feed.seen.posts", "int", "ListSeen", "posts seen in the window"),
    Attribute("feed.verdict.<verdict>", "int", "FilterCandidates", "candidates by their fate"),
    Attribute("feed.candidates.ranked", "int", "RankCandidates", "candidates scored"),
    Attribute("feed.features.hits", "int", "RankCandidates", "posts whose features were known"),
    Attribute("feed.features.misses", "int", "RankCandidates", "posts with none"),
    Attribute(
        "feed.features.recent", "int", "RankCandidates", "posts looked up a moment before"
    ),
    Attribute(
        "feed.features.view", "string", "POST to the feature server", "the feature view asked for"
    ),
    Attribute("feed.features.pushed", "int", "push features", "users and posts of the batch"),
    Attribute("feed.log.kind", "string", "append {kind}", "served, impressions or engagements"),
    Attribute("feed.log.rows", "int", "append {kind}", "rows of the batch"),
    Attribute("feed.log.joined", "int", "tidy log", "files of closed days that became one a day"),
    Attribute("feed.log.forgotten", "int", "tidy log", "days that were too old"),
    Attribute("feed.explored", "int", "HydrateFeed", "posts moved up by chance"),
    Attribute("feed.page.posts", "int", "HydrateFeed, HydratePosts", "posts hydrated"),
    Attribute(
        "feed.page.missing", "int", "HydrateFeed, HydratePosts", "posts that are gone, passed over"
    ),
    Attribute(
        "feed.rpc.previous_attempts", "int", "gRPC clients", "attempts at this call before or "
        "beside this one; not set on the first"
    ),
    Attribute("feed.event.age_ms", "int", _PROCESS, "since what the event tells of happened"),
    Attribute("feed.event.previous_attempts", "int", _PROCESS, "failed ones, if any"),
    Attribute(
        "feed.event.redeliveries", "int", _PROCESS, "earlier ones, if any; Kafka does not count"
    ),
    Attribute("feed.dead_reason", "string", "send {topic}.dead", "why it was given up"),
    Attribute(
        "feed.fanout.mode", "string", f"{_PROCESS} by fanout", "push, pull or remove"
    ),
    Attribute("feed.fanout.mailboxes", "int", f"{_PROCESS} by fanout", "mailboxes written"),
    Attribute("feed.texts", "int", "embed texts", "texts in the batch"),
    Attribute("feed.media.bytes", "int", "prepare media, store media, S3/PutObject", "size"),
    Attribute("feed.media.deleted", "int", "clean up media", "objects and uploads deleted"),
    Attribute(
        "user.hash, user.id", "string", "REST requests", "who asked, as FEED_TRACE_USERS says"
    ),
)  # fmt: skip
