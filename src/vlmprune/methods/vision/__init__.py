"""Methods that act on what the vision encoder made, before the LLM."""
