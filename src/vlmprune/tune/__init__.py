"""`vlmprune tune`: the method and budget that meet a target on a user's own pictures, by successive halving."""
