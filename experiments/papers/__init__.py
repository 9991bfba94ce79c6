"""The tables and figures of the papers, row by row: each paper is one file of rows, and one program runs them."""
