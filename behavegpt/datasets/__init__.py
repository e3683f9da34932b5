"""Logs by name: published ones and their converters, commit histories of clones, and generated
worlds."""
