"""The universal model: a pretrained mixer of count experts; no vocabulary, no training on a log."""
