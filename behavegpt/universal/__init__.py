"""The universal model: count experts and a pretrained mixer. No vocabulary, no training on the
log."""
