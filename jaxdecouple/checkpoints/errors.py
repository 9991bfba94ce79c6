"""What can be wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written, is not there, or does not fit."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint's files are incomplete or changed: an older one may still be whole."""
