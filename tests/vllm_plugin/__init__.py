"""Tests of the plugin for vLLM, in an environment of their own (tools/extras.py)."""
