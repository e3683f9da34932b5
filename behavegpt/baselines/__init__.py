"""Predictors without a network, on the same rows and with the same scores as the model."""
