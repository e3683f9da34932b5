"""The names of the adaptation modes, apart from what they do, so that `--help` need not import
it."""

from __future__ import annotations

from typing import Literal

Mode = Literal[
    "new_behavior",
    "cross_domain",
    "transformer_only",
    "lora",
    "ofa",
    "qk_only",
    "head_only",
    "full",
    "scratch",
]
