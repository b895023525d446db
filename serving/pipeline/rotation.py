"""A slate that is not the same every day."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

DAY_MICROS = 86_400_000_000
_MASK = 2**64 - 1


def rotation_seed(subject: str | None, now_micros: int) -> int:
    """64 bits for one subject (None: nobody) on one UTC day."""
    text = f"{now_micros // DAY_MICROS}/{subject or ''}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def rotated(scores: Mapping[int, float], *, rotation: float, seed: int) -> dict[int, float]:
    """Each score less a share of itself between 0 and `rotation` that depends on the item and the seed alone: items
    that score nearly alike change places, others stay apart."""
    return {number: score * (1.0 - rotation * _chance(number ^ seed)) for number, score in scores.items()}


def _chance(value: int) -> float:
    """In [0, 1), evenly: the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return ((value ^ (value >> 31)) >> 11) * 2.0**-53
