"""Every table and figure of chapters 5 (DDG) and 6 (Features Replay) of Huo's thesis; chapter 4: `large_batch`."""

from experiments.reproduction import rows

TABLES = (
    "table3",
    "figure17_18",
    "figure19",
    "figure20",
    "figure21",
    "table5",
    "figure22",
    "figure23",
    "figure26",
    "figure27",
    "figure28",
    "table7",
)


def paper() -> rows.Paper:
    """The thesis; not at import, so that a table's module can be imported alone."""
    return rows.load("thesis", "Huo's thesis, chapters 5 and 6", TABLES)
