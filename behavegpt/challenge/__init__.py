"""The RecSys Challenge 2025 on its own: data, split, targets, evaluator, validator, leaderboard.

Knows UserEmbeddings and nothing of our models, so that strangers can use it alone.
"""
