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
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "fp32"


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast | nullcontext[None]:
    """bf16 autocast over fp32 weights, or nothing."""
    half = choose_precision(precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()
