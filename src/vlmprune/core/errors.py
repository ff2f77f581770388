"""The one exception for a user's mistake."""


class UserError(ValueError):
    """Wrong input from the user: one sentence that says what to do. The command line prints it without a traceback."""
