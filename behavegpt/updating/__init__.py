"""A trained run, day by day: new events are predicted first, then learned, or rolled back.

settings.py   what is asked for
append.py     a new log behind a prepared folder -> the prepared folder of all events so far
drift.py      how well the model knew the new events, and how they differ from the earlier ones
learn.py      the model with new labels, new tables and some steps on the new events
versions.py   RUN/updates: what each update left, whole or absent; undo
run.py        all of it: `behavegpt.update`
result.py     the figures, as tables
"""
