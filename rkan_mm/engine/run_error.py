"""What goes wrong in a run and its user can mend."""


class RunError(Exception):
    """The message says what happened and what to do; the command line shows it without a traceback."""


class PreflightError(RunError):
    """Something that a run needs is not there, or not as it must be."""
