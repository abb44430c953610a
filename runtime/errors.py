"""The error and the warning that users see."""


class CascadeError(Exception):
    """A mistake that the user can mend: one sentence that says what was wrong and what to do.

    The command line prints the sentence and exits with code 2.
    """


class CascadeWarning(UserWarning):
    """Something was done otherwise than it was asked for: one sentence. The command line prints it on stderr."""
