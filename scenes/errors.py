"""The one error a user can cause."""


class UserError(ValueError):
    """Something the user asked for cannot be done: one line with the value received, what is allowed, and the remedy.

    The command line prints the message on stderr and exits with code 2; it never shows a traceback.
    """
