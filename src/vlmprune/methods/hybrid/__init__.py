"""Methods that choose by what the vision side knows and act inside the LLM, with Prune-Aware Fusion before the cut."""
