"""When a user acts next: what is read of histories (moments.py), the distribution of gaps learned
from them (gaps.py), the answer for users (answer.py) and its figures on held-out events
(evaluate.py)."""
