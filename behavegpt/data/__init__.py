"""A prepared store: its schema and vocabulary, memory of the past, packing and batches."""
