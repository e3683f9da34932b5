"""Scaling laws (section 4.7): the ladder of sizes, the sweep over sizes and data, the fit, and what
follows from it."""
