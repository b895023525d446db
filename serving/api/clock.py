"""The rule for wrong clocks, as the API applies it: it is the same at every entrance that knows when it received."""

from feature_repo.contracts.clocks import MAX_CORRECTED_SKEW, corrected_for_skew

__all__ = ["MAX_CORRECTED_SKEW", "corrected_for_skew"]
