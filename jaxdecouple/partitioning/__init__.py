"""Partitioning cuts a network into stages, by layers, costs or measured times."""

from jaxdecouple.partitioning.partition import partition
from jaxdecouple.partitioning.profiling import Profile, profile

__all__ = ["Profile", "partition", "profile"]
