"""Errors a user can mend. The command line prints them as one paragraph and exits with 2; all else is our bug."""

from __future__ import annotations


class BehaveGPTError(Exception):
    """A mistake in the input or the settings: the message says what, where and how to mend it."""


class DataError(BehaveGPTError):
    """Event logs or a prepared folder that cannot be used."""


class ConfigError(BehaveGPTError):
    """Settings that are unknown, of the wrong type or contradictory."""


class CheckpointError(BehaveGPTError):
    """A checkpoint or model folder that is damaged or does not fit the data."""


def install_command(extra: str) -> str:
    """How to install an extra: from a checkout, as the package is not on PyPI."""
    return f"pip install -e '.[{extra}]' (in your checkout of BehaveGPT)"


class MissingExtraError(BehaveGPTError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed; run: {install_command(extra)}")


def violation(error: Exception) -> str:
    """What a model configuration objects to: the last line, as huggingface_hub wraps errors in types of its own.

    >>> violation(ValueError("Class validation error:\\n    ValueError: dropout must be in [0, 1), not 2."))
    'dropout must be in [0, 1), not 2.'
    """
    return str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
