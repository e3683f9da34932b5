"""Tables of many models on many logs: the same data, the same budget, the same tuning, several
seeds."""
