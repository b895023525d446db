from collections.abc import Sequence

from feature_repo.contracts.tree_text import Trees

class TreeScorer:
    def __init__(self, trees: Trees) -> None: ...
    def scores(
        self,
        count: int,
        own_width: int,
        own: Sequence[float],
        numbers: Sequence[int],
        item_width: int,
        items: Sequence[float],
        user: Sequence[float],
        category_width: int,
        places: Sequence[int],
        by_category: Sequence[float],
    ) -> list[float]: ...
