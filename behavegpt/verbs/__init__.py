"""The verbs of the command line, by theme; behavegpt/cli.py puts them into one table."""
