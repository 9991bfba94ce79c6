"""The errors that users meet. Each is a `JaxdecoupleError`, and a ``ValueError``: something given cannot be used."""


class JaxdecoupleError(ValueError):
    """Something given cannot be used; the message says what was given, what was expected and what to write."""


class ScheduleError(JaxdecoupleError):
    """A schedule that cannot be built or cannot be executed."""


class DataError(JaxdecoupleError):
    """Data, or a request for data, that cannot be used."""


class CheckpointError(JaxdecoupleError):
    """A checkpoint that cannot be written, is not there, or does not fit."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files are incomplete or changed. An older one may still be whole."""
