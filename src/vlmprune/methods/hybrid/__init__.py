"""Methods that choose tokens by signals of the vision side and cut inside the LLM, after Prune-Aware Fusion."""
