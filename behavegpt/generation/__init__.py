"""Long-term generation: rollouts of whole events, one after the other."""
