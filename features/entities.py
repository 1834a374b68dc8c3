"""Whom and what features are about. Ids are snowflakes."""

from feast import Entity, ValueType

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
post = Entity(name="post", join_keys=["post_id"], value_type=ValueType.INT64)
author = Entity(name="author", join_keys=["author_id"], value_type=ValueType.INT64)
