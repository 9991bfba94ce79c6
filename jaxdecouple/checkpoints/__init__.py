"""Checkpoints: the whole state of a run, with everything in flight, as arrays and JSON."""

from jaxdecouple.checkpoints.api import document, metadata, restore, save
from jaxdecouple.checkpoints.directory import Checkpoints, Saved, saved_in
from jaxdecouple.checkpoints.variables import export_variables, import_variables, read_variables, write_variables
from jaxdecouple.errors import CheckpointError, DamagedCheckpoint

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DamagedCheckpoint",
    "Saved",
    "document",
    "export_variables",
    "import_variables",
    "metadata",
    "read_variables",
    "restore",
    "save",
    "saved_in",
    "write_variables",
]
