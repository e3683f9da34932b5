"""Tests of behavegpt/updating."""
