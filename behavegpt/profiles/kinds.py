"""All kinds of members by the name that YAML calls them; see `members` for what a kind is."""

from __future__ import annotations

from behavegpt.profiles import (
    behavior,
    contrastive,
    entry,
    factorization,
    future,
    gru_autoencoder,
    handcrafted,
    ials,
    next_event,
    text,
)
from behavegpt.profiles.members import Kind

KINDS: dict[str, Kind] = {
    "behavegpt": Kind(behavior.BehaviorSettings, behavior.fit, behavior.embed),
    "entry": Kind(entry.EntrySettings, entry.fit, entry.embed),
    "factorization": Kind(factorization.FactorizationSettings, factorization.fit, factorization.embed),
    "gru_autoencoder": Kind(gru_autoencoder.GruSettings, gru_autoencoder.fit, gru_autoencoder.embed),
    "handcrafted": Kind(handcrafted.HandcraftedSettings, handcrafted.fit, handcrafted.embed),
    "ials": Kind(ials.IalsSettings, ials.fit, ials.embed),
    "contrastive": Kind(contrastive.ContrastiveSettings, contrastive.fit, contrastive.embed),
    "future": Kind(future.FutureSettings, future.fit, future.embed),
    "next_event": Kind(next_event.NextEventSettings, next_event.fit, next_event.embed),
    "text": Kind(text.TextSettings, text.fit, text.embed),
}
