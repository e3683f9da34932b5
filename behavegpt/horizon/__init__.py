"""The days to come: what each user will do, and when.

For each of a user's likely behaviors and each day, `expected.py` puts one event at the user's usual
hour, with facts of the past that tell how sure it is; `learn.py` learns from earlier moments of the
same log, of which the future is known, what the facts are worth; `forecast.py` asks for all users;
`backtest.py` tells how good that is, on the last days of the log.
"""
