"""Feature sets by use; a changed set is a new name, so that old readers keep what they were written for."""

from feast import FeatureService

from feature_repo.definitions.views import item_features, user_category_features, user_features

user_segment_v1 = FeatureService(
    name="user_segment_v1",
    features=[user_features[["user_top_category_90d"]]],
    description="What the segment rung of the fallback ladder reads.",
)
user_ranking_v1 = FeatureService(
    name="user_ranking_v1", features=[user_features], description="All user features, for training frames and rankers."
)
item_ranking_v1 = FeatureService(
    name="item_ranking_v1", features=[item_features], description="All item features, for training frames and rankers."
)
ranking_v1 = FeatureService(
    name="ranking_v1",
    features=[user_features, item_features, user_category_features],
    description="Everything about a user, an item and the user's history in the item's category, for a ranker.",
)
