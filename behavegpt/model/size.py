"""Parameters by part: papers disagree on which of them N counts."""

from __future__ import annotations

from torch import nn


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of embeddings, blocks (with the final norm), prediction layer and auxiliary heads,
    and the total.

    `without_embeddings` leaves out the embedding tables, as Kaplan et al. count; a shared tensor
    counts once.
    """
    parts = {"embeddings": 0, "blocks": 0, "head": 0, "next_heads": 0}
    for name, parameter in model.named_parameters():
        # in the model with head the body's names begin with `model.`, alone they do not
        if "embedding." in name:
            part = "embeddings"
        elif name.startswith("next_heads."):
            part = "next_heads"
        else:
            # whatever else there is, also of baselines, lies between embeddings and head
            part = "head" if name.startswith(("head.", "given.")) else "blocks"
        parts[part] += parameter.numel()

    total = sum(parts.values())
    assert total == sum(p.numel() for p in model.parameters()), "the parts must sum to the whole"
    return {**parts, "without_embeddings": total - parts["embeddings"], "total": total}
