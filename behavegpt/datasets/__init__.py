"""Logs by name: event logs made from what people already have, such as the commit histories of their clones."""
