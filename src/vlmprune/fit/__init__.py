"""Fits that some methods need before they are used: once for a model, on a few prompts."""
