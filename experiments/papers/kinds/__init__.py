"""The kinds of rows: each module runs one kind, and has the measures that tables of this kind use."""
