"""Runs rows of the tables and figures of this folder; see `experiments.reproduction.program`.

python -m experiments.adl --row=ROW
"""

from experiments import cli as command_line
from experiments.adl import paper
from experiments.reproduction import program

if __name__ == "__main__":
    program.define_flags(paper())
    command_line.start(lambda argv: program.main(argv, paper()))
