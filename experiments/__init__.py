"""Experiments: flag-driven programs over importable functions."""
