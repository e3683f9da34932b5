"""The universal model, count experts and a pretrained mixer: no vocabulary, no training on a log."""
