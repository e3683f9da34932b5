"""User vectors: pooled from hidden states, exported for any number of users, put into the asked
order."""
