"""Algorithms: what a worker computes, from which examples, with which step; what the server does with it."""
