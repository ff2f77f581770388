"""Methods that act inside the LLM, before one of its layers."""
