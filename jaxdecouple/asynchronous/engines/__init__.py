"""Engines: who computes when, and with which w; simulated, on processes of this machine, on Ray."""
