"""Checkpoints: the whole state of a run, with everything in flight, as arrays and JSON."""

from jaxdecouple.checkpoints.api import document, metadata, restore, save
from jaxdecouple.checkpoints.directory import Checkpoints, Saved, saved_in
from jaxdecouple.checkpoints.errors import CheckpointError, DamagedCheckpoint

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DamagedCheckpoint",
    "Saved",
    "document",
    "metadata",
    "restore",
    "save",
    "saved_in",
]
