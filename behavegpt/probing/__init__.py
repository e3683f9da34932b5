"""What do user vectors know? Labels of users predicted from vectors, counts and aggregates of the
past.

settings.py   what is asked for
labels.py     the file of labels -> one label for each user
past.py       a log and a model -> vectors of the events before a moment
features.py   counts and aggregates of the same events
scoring.py    folds by user, scikit-learn probes, intervals
result.py     the figures, as table, JSON and plot
run.py        all of it: `behavegpt.probe`
"""
