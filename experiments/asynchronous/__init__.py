"""Experiments on asynchronous optimization (thesis, chapters 2 and 3)."""
