"""UserEmbeddings: where every producer of user vectors ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class UserEmbeddings:
    """One vector for each user, in the order of `users`."""

    users: pa.StringArray  # (U,) labels
    vectors: np.ndarray  # (U, D) float32

    def __post_init__(self) -> None:
        if len(self.users) != len(self.vectors):
            raise ValueError(f"{len(self.users)} users but {len(self.vectors)} vectors")
        if not np.isfinite(self.vectors).all():
            raise ValueError("a user vector holds NaN or infinity")
