"""The exception hierarchy, and the exit status that each kind ends a command with."""


class MscopeError(Exception):
    """A failure, told to the user: what went wrong, where, what to do. Ends a command with `exit_code`."""

    exit_code = 1


class InputError(MscopeError):
    """Bad usage or bad input: a file, an option or a value that the user can correct."""

    exit_code = 2


class BundleError(InputError):
    """A bundle that is missing, damaged, foreign or of a newer schema."""


class CheckpointError(InputError):
    """A weights file that cannot be read or does not fit the model."""


class BackendError(MscopeError):
    """A backend or kernel that was asked for and cannot be had here; the message names what is missing."""


class ParityError(MscopeError):
    """An exported graph that does not compute what the model computes."""
