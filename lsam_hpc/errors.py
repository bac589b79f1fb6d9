"""The one error that stands for bad input."""


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line: the thing, what was expected, what was found.

    The command line prints it without a traceback and exits with 2.

    Args:
        message: the line.
        everywhere: whether all ranks of the job raise it alike, so that one of them may speak for all.
    """

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere
