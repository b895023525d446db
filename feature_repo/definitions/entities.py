"""Whom and what features are about."""

from feast import Entity, ValueType

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="A known user of the shop.")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="An item of the catalogue.")
category = Entity(
    name="category", join_keys=["category"], value_type=ValueType.STRING, description="A full category path, `A > B`."
)
