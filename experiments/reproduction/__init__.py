"""Reproductions: what the programs that run every row of a paper's tables share."""
