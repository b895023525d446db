"""What `feast plan` and `feast apply` see: every object of `feature_repo.definitions`, once."""

from feature_repo.definitions.entities import category, item, user
from feature_repo.definitions.services import item_ranking_v1, ranking_v1, user_ranking_v1, user_segment_v1
from feature_repo.definitions.views import item_features, user_category_features, user_features

__all__ = [
    "category",
    "item",
    "item_features",
    "item_ranking_v1",
    "ranking_v1",
    "user",
    "user_category_features",
    "user_features",
    "user_ranking_v1",
    "user_segment_v1",
]
