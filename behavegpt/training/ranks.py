"""How many processes work together, and a warning where the launcher was asked for more than there
are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

import torch

from behavegpt.console import say

# what launchers tell each process of their number: torchrun, SLURM, Open MPI, MPICH and Intel MPI,
# MVAPICH
SIZES = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class Ranks(Protocol):
    """accelerate's PartialState, or its Accelerator."""

    @property
    def num_processes(self) -> int: ...
    @property
    def is_main_process(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...


def ranks_asked(environment: Mapping[str, str]) -> int:
    """Processes that the launcher's environment speaks of; 2 where it says "several", 1 where there
    was no launcher."""
    # the largest: a launcher inside another one sets its own
    asked = max(
        int(environment[name]) if environment.get(name, "").isdigit() else 1 for name in SIZES
    )

    # `accelerate launch --cpu --num_processes N` starts one process, and only a port tells that N
    # was more than 1
    several = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_PORT" in environment
    return max(asked, 2 if several else 1)


def tell_ranks(ranks: Ranks, environment: Mapping[str, str] | None = None) -> None:
    """Say on the main process how many there are, and what to do when the launcher should have made
    more."""
    if not ranks.is_main_process:
        return
    count = ranks.num_processes

    say(f"{count} process{'es' if count > 1 else ''} on {ranks.device.type}")

    if ranks_asked(os.environ if environment is None else environment) > count:
        say(
            f"warning: the launcher was asked for more than {count}, and this process works alone, "
            "as if it were the only one. `accelerate launch --cpu` starts a single process, and a "
            "bare `srun` or `mpirun` unconnected ones. Use: torchrun --nproc_per_node N train.py "
            "... (on a CPU and on GPUs), or accelerate launch --multi_gpu."
            if count == 1
            else f"warning: the launcher was asked for more processes than {count}."
        )
