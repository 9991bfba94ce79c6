"""Experiments on layer-wise learning rates and large batches (thesis, chapter 4)."""
