"""The exception for bad input."""


class InputError(ValueError):
    """The user's input is wrong. The message is one line: "name: expected X, found Y".

    The command line prints it without a traceback and exits with code 2.

    Args:
        message: the line.
        everywhere: True if all ranks of the job raise the same error, so that one rank prints it. Default False.
    """

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class RankLostError(RuntimeError):
    """A rank of the job has failed, and a call that needs it was given up."""
