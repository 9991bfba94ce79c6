"""Every table and figure of: Xu et al., *On the Acceleration of Deep Learning Model Parallelism with Staleness*."""

from experiments.reproduction import rows

TABLES = ("table1", "table2", "table3", "table4", "figure3", "figure4_gradients", "figure4_curves", "figure5")


def paper() -> rows.Paper:
    """The paper; not at import, so that a table's module can be imported alone."""
    return rows.load("dsp", "On the Acceleration of Deep Learning Model Parallelism with Staleness", TABLES)
