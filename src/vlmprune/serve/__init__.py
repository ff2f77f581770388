"""Serving: a server with OpenAI's interface whose model runs under `vlmprune.prune`."""
