"""A web page on which anyone can try methods on a photo: the answers, what was kept, and the tokens, side by side."""
