"""Other ways to run a benchmark than our own loop in one process."""
