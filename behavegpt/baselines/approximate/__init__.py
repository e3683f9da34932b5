"""Baselines written from an abstract or from formulas alone, without the authors' code; each says
what is ours."""
