"""In which precision a device computes: fp32 weights everywhere, bf16 autocast where the hardware
has it."""

from __future__ import annotations

from contextlib import nullcontext

import torch


def choose_precision(wanted: str, device: torch.device) -> str:
    """fp32 or bf16: `auto` takes bf16 autocast only where the device computes in it."""
    if wanted != "auto":
        return wanted

    if device.type == "cuda":
        # without emulation: before Ampere bf16 is computed in fp32 and converted, slower than fp32
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # on a CPU without bf16 units autocast runs at a third of the speed of fp32
    return "fp32"


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast | nullcontext[None]:
    """bf16 autocast over fp32 weights, or nothing."""
    half = choose_precision(precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()
