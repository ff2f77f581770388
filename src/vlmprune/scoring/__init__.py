"""From a raw reply to a score, and from scores to a task's metric. No model is needed, so records can be scored anew.

`replies` finds the answer in a reply and scores it, `metrics` turns the scores of a task into its figures.
"""
