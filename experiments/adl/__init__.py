"""Every table and figure of: Zhuang et al., *Accumulated Decoupled Learning with Gradient Staleness Mitigation*."""

from experiments.reproduction import rows

TABLES = ("figure2", "table2a", "table2b", "table2c", "figure3_curves", "figure3_partition", "table3", "table4")


def paper() -> rows.Paper:
    """The paper; not at import, so that a table's module can be imported alone."""
    title = "Accumulated Decoupled Learning with Gradient Staleness Mitigation for Convolutional Neural Networks"
    return rows.load("adl", title, TABLES)
