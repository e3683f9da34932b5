"""Streaming metrics on tensors."""
