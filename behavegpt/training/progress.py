"""What a run has reached, and which of its models is the best one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# figures of a validation that are logged
FIGURES = ("rec_w", "rec_m", "prec_w", "prec_m", "ndcg@3", "hr@3", "head", "mid", "tail")


@dataclass
class Progress:
    """What a run has reached; saved in every checkpoint."""

    step: int = 0  # finished optimizer steps
    best_step: int | None = None
    best_value: float | None = None
    worse: int = 0  # validations since the best one
    # why it was best to end before the last step; a signal is no state of the training
    stopped: str | None = None

    def judge(self, figures: Mapping[str, float], select: str, patience: int | None) -> bool:
        """Whether a validation's figures are the best so far by `select`; after `patience` others
        the run is to stop."""
        value = selection_value(figures, select)
        # strictly better: of equal models the earlier one
        if self.best_value is None or value > self.best_value:
            self.best_step, self.best_value, self.worse = self.step, value, 0
            return True

        self.worse += 1

        if patience and self.worse >= patience:
            self.stopped = f"no better {select} in {self.worse} validations"
        return False

    @property
    def protected(self) -> list[int]:
        """Steps whose checkpoints must stay."""
        return [] if self.best_step is None else [self.best_step]


def selection_value(figures: Mapping[str, float], select: str) -> float:
    """The figure by which checkpoints are compared; larger is better."""
    if select == "rec_mean":
        return (figures["rec_w"] + figures["rec_m"]) / 2
    # a smaller cross-entropy is better
    return -figures[select] if select == "cross_entropy" else figures[select]
