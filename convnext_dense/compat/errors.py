"""The one exception for a mistake that the user can mend."""


class UserError(ValueError):
    """What came, what is allowed and what to do next, in one readable message.

    The tools print it as ``error: ...`` without a traceback and leave with exit code 2.
    """
