"""Measuring: speed, memory, compilations, and what saving, diagnostics and kills cost."""
