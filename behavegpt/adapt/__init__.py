"""From a pretrained checkpoint to a model for new behaviors or another domain (section 3.3)."""
