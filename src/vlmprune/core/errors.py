"""Errors that a user can mend."""


class UserError(ValueError):
    """Bad input from the user; its message is one clear sentence, shown without a traceback."""
