"""Rows in memory are read twice here, and compared."""

from tests.readers import both_readers  # noqa: F401 - a fixture
