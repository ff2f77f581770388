"""Methods that act on the image, before the vision encoder."""
