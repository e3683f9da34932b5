"""Devices by name: which are there, and one error for those that are not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from behavegpt.errors import ConfigError, first_line


def default_devices() -> list[str]:
    """Every GPU that is visible, else the CPU."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


def check_devices(devices: Sequence[str]) -> None:
    """Raises ConfigError for a device that is not there."""
    for name in devices:
        try:
            # the smallest use of a device: what a name means, only the back end knows
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
            raise ConfigError(
                f"device {name!r} cannot be used ({first_line(error)}); choose one of "
                f"{', '.join(default_devices())}."
            ) from None


def choose_device(name: str | torch.device | None) -> torch.device:
    """The device of a name; the first GPU, or the CPU, for None and `auto`. Raises ConfigError for
    one not there."""
    device = default_devices()[0] if name in (None, "", "auto") else name
    check_devices([str(device)])
    return torch.device(device)
