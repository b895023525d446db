from collections.abc import Callable, Mapping

from serving.api.answering import Question

class QuestionReader:
    def __init__(
        self,
        kind_of_question: type[Question],
        kind: str,
        plain: Mapping[str, int | None],
        default: str,
        new_id: Callable[[], str],
        most_results: int,
        most_excluded: int,
    ) -> None: ...
    def read(self, data: bytes, now_micros: int) -> Question | None: ...
