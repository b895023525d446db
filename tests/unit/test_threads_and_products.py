"""Blocks in threads, and products of sparse matrices as dense blocks: the same bits however many work on them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from implicit.cpu import als as implicit_als
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy import sparse

from spark_jobs.models import item_knn, products, threads
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.models.factory import build_model
from spark_jobs.models.item_knn import best_of_cells, best_of_product
from spark_jobs.models.matrix import distinct
from spark_jobs.models.products import dense_product, dense_product_twin, term_count
from spark_jobs.models.threads import by_blocks, kernel_threads, ranges, side_by_side

needs_native = pytest.mark.skipif(products.native is None, reason="spark_jobs/native is not compiled (make setup)")


def some_matrix(seed: int, rows: int, columns: int, density: float) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    found = sparse.random(rows, columns, density, format="csr", dtype=np.float32, random_state=rng)
    found.data = rng.lognormal(0, 3, found.nnz).astype(np.float32)  # sums whose order shows in their last bits
    return found


# --- threads -----------------------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_blocks_whoever_ends_first() -> None:
    second_has_ended = threading.Event()

    def work(block: int) -> int:
        if block == 0:
            assert second_has_ended.wait(20)  # passes only when both run at once
        if block == 1:
            second_has_ended.set()
        return block * 10

    assert list(by_blocks(work, range(5), threads=2)) == [0, 10, 20, 30, 40]


def test_an_error_comes_at_its_place_and_few_later_blocks_are_begun() -> None:
    begun: list[int] = []

    def work(block: int) -> int:
        begun.append(block)
        if block == 3:
            raise ValueError("block 3")
        return block

    results = by_blocks(work, range(100), threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="block 3"):
        next(results)
    assert max(begun) <= 6


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_more_blocks_and_results_are_held_than_said(count: int) -> None:
    """`count` threads: that many and one more are taken before the first result is handed on."""
    taken: list[int] = []

    def blocks() -> Iterator[int]:
        for block in range(20):
            taken.append(block)
            yield block

    ahead = [len(taken) - done for done, _ in enumerate(by_blocks(abs, blocks(), threads=count), start=1)]
    assert len(ahead) == 20
    assert max(ahead) <= count


def test_blocks_within_a_block_have_no_threads_of_their_own() -> None:
    def work(block: int) -> set[int]:
        mine = threading.get_ident()
        return {mine} ^ set(by_blocks(lambda _: threading.get_ident(), range(4), threads=4))

    assert list(by_blocks(work, range(3), threads=2)) == [set()] * 3


def test_a_kernel_is_told_its_threads_and_has_one_within_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS is 1 in a task: a kernel that is not told would leave the other processors idle."""
    monkeypatch.setattr(threads, "thread_count", lambda: 3)
    assert kernel_threads() == 3
    assert list(by_blocks(lambda _: kernel_threads(), range(3), threads=2)) == [1, 1, 1]
    asked = []

    class Kernel(AlternatingLeastSquares):
        def __init__(self, **options: Any) -> None:
            asked.append(options["num_threads"])
            super().__init__(**options)

    monkeypatch.setattr(implicit_als, "AlternatingLeastSquares", Kernel)
    model = build_model("als", {"factors": 4, "iterations": 2})
    model.fit(people_and_items())
    list(by_blocks(lambda _: model.fit(people_and_items()), range(1), threads=2))
    assert asked == [3, 1]


def test_two_pieces_of_work_run_at_once_and_give_what_each_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "thread_count", lambda: 2)
    second_has_ended = threading.Event()

    def first() -> str:
        assert second_has_ended.wait(20)
        return "first"

    def second() -> int:
        second_has_ended.set()
        return kernel_threads()

    assert side_by_side(first, second) == ("first", 1)

    def fails() -> str:
        raise ValueError("first")

    def fails_too() -> int:
        raise KeyError("second")

    with pytest.raises(ValueError, match="first"):
        side_by_side(fails, fails_too)
    with pytest.raises(KeyError, match="second"):
        side_by_side(lambda: 1, fails_too)


def test_ranges_cover_everything_once() -> None:
    assert ranges(0, 4) == []
    assert ranges(9, 4) == [slice(0, 4), slice(4, 8), slice(8, 9)]


def people_and_items() -> InteractionMatrix:
    preference = some_matrix(5, 1_500, 300, 0.05)
    subjects = np.array([f"u:{n:05d}" for n in range(preference.shape[0])])
    return InteractionMatrix(subjects, preference, np.zeros(preference.nnz, np.int64))


@pytest.mark.parametrize("name", ["item_knn", "rp3beta", "als"])
def test_a_model_is_the_same_bits_by_one_thread_and_by_three(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = people_and_items()
    monkeypatch.setattr("spark_jobs.models.item_knn.ITEMS_PER_BLOCK", 32)
    monkeypatch.setattr("spark_jobs.models.linked_items.ITEMS_PER_BLOCK", 32)
    monkeypatch.setattr("spark_jobs.models.als.USERS_PER_BLOCK", 100)

    def scores(count: int) -> bytes:
        monkeypatch.setattr(threads, "thread_count", lambda: count)
        model = build_model(name, {"factors": 8} if name == "als" else {})
        model.fit(matrix)
        found: bytes = model.score_block(matrix.preference, np.arange(len(matrix.subjects))).tobytes()
        return found

    assert scores(1) == scores(3)


# --- products ----------------------------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3])
def test_native_products_are_the_bits_of_scipys(density: float) -> None:
    for seed in range(5):
        left, right = some_matrix(seed, 60, 80, density), some_matrix(seed + 50, 80, 120, density)
        found, expected = dense_product(left, right), dense_product_twin(left, right)
        assert found.dtype == np.float32
        assert found.tobytes() == expected.tobytes()


def test_a_product_by_hand() -> None:
    left = sparse.csr_matrix(np.array([[1, 2, 0], [0, 0, 0]], np.float32))
    right = sparse.csr_matrix(np.array([[0, 5], [3, 1], [9, 9]], np.float32))
    for product in (dense_product, dense_product_twin):
        assert product(left, right).tolist() == [[6, 7], [0, 0]]
    assert term_count(left, right) == 3


@needs_native
def test_matrices_that_point_outside_of_themselves_are_refused() -> None:
    left, right = some_matrix(1, 4, 5, 0.5), some_matrix(2, 5, 6, 0.5)
    with pytest.raises(ValueError, match=r"\(4, 5\) @ \(4, 5\)"):
        dense_product(left, left)
    for broken in (left, right):
        for place in (-1, 6):
            kept = broken.indices[0]
            broken.indices[0] = place
            with pytest.raises(IndexError):
                dense_product(left, right)
            broken.indices[0] = kept
    left.indptr[2] = 1_000
    with pytest.raises(IndexError):
        dense_product(left, right)


WHOLE: dict[str, list[float]] = {
    "left_starts": [0, 1], "left_columns": [1], "left_values": [2],
    "right_starts": [0, 1, 2], "right_columns": [0, 0], "right_values": [3, 4],
}  # fmt: skip
KINDS = {"starts": np.int64, "columns": np.int32, "values": np.float32}
OUTSIDE = {
    "a row begins before the left entries": {"left_starts": [-1, 1]},
    "a row ends behind the left entries": {"left_starts": [0, 2]},
    "an entry is of a column before the first": {"left_columns": [-1]},
    "an entry is of the column behind the last": {"left_columns": [2]},
    "a row begins before the right entries": {"right_starts": [0, -1, 2]},
    "a row ends behind the right entries": {"right_starts": [0, 1, 3]},
    "a cell before the block": {"right_columns": [0, -1]},
    "a cell behind the block": {"right_columns": [0, 1]},
}


def added(**changed: list[float]) -> NDArray[np.float32]:
    """[0 2] @ [3 4] transposed, by native code. Zeros lie around every array: who reads them gets no error."""
    arrays = []
    for name, numbers in {**WHOLE, **changed}.items():
        wider = np.zeros(len(numbers) + 4, KINDS[name.partition("_")[2]])
        wider[2:-2] = numbers
        arrays.append(wider[2:-2])
    block = np.zeros(5, np.float32)
    assert products.native is not None
    products.native.add_product(*arrays, block[2:3].reshape(1, 1))
    return block


@needs_native
@pytest.mark.parametrize("outside", OUTSIDE)
def test_each_place_outside_of_the_matrices_is_refused(outside: str) -> None:
    assert added().tolist() == [0, 0, 8, 0, 0]
    with pytest.raises(IndexError, match="outside of itself"):
        added(**OUTSIDE[outside])


def halved(values: NDArray[np.float32], rows: Any, columns: Any) -> NDArray[np.float32]:
    """What is at (n, n) is left out, the columns from 50 on count half."""
    return np.where(rows == columns, 0.0, values * np.where(columns >= 50, 0.5, 1.0)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 7, 200])
def test_the_best_of_a_product_are_the_same_entry_by_entry_and_as_a_whole(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a slow oracle: small whole numbers, so that many are equal."""
    rng = np.random.default_rng(4)
    left = sparse.csr_matrix(rng.integers(0, 3, (40, 30)) * (rng.random((40, 30)) < 0.2), dtype=np.float32)
    right = sparse.csr_matrix(rng.integers(0, 3, (30, 90)) * (rng.random((30, 90)) < 0.2), dtype=np.float32)
    cells = left.toarray() @ right.toarray()
    expected = np.zeros_like(cells)
    for row in range(40):
        worth = {n: cells[row, n] * (0.5 if n >= 50 else 1.0) for n in range(90) if n != row and cells[row, n] > 0}
        for column in sorted(worth, key=lambda n: (-worth[n], n))[:count]:
            expected[row, column] = worth[column]
    for below in (0, 10**9):  # always entry by entry, always as a whole
        monkeypatch.setattr(item_knn, "SPARSE_BELOW", below)
        found = best_of_product(left, right, halved, count)
        assert found.toarray().tolist() == expected.tolist()
        assert found.has_sorted_indices
        assert found.nnz == np.count_nonzero(expected)
    assert best_of_cells(cells, halved, count).toarray().tolist() == expected.tolist()


def test_distinct_numbers() -> None:
    assert distinct(np.array([5, 3, 5, -1, 3], np.int64)).tolist() == [-1, 3, 5]
    assert distinct(np.empty(0, np.int64)).tolist() == []
