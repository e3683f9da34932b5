"""From raw logs to a prepared store, and from the store to batches."""
