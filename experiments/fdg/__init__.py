"""Every table and figure of: Zhuang et al., *Fully Decoupled Neural Network Learning Using Delayed Gradients*."""

from experiments.reproduction import rows

TABLES = ("table2", "table3", "table4", "table5", "table6", "table7", "table8", "figure3ab", "figure3c")


def paper() -> rows.Paper:
    """The paper; not at import, so that a table's module can be imported alone."""
    return rows.load("fdg", "Fully Decoupled Neural Network Learning Using Delayed Gradients", TABLES)
