"""All kinds of members by the name that YAML calls them; see `members` for what a kind is."""

from __future__ import annotations

from behavegpt.profiles import entry, handcrafted, ials
from behavegpt.profiles.members import Kind

KINDS: dict[str, Kind] = {
    "entry": Kind(entry.EntrySettings, entry.fit, entry.embed),
    "handcrafted": Kind(handcrafted.HandcraftedSettings, handcrafted.fit, handcrafted.embed),
    "ials": Kind(ials.IalsSettings, ials.fit, ials.embed),
}
