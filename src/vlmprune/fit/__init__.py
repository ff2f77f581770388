"""What some methods fit once for a model, on a few prompts, before they are used."""
