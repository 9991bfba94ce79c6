"""Runs rows of the tables and figures of this folder; see `experiments.reproduction.program`.

python -m experiments.thesis --row=ROW
"""

from absl import app

from experiments.reproduction import program
from experiments.thesis import paper

if __name__ == "__main__":
    program.define_flags(paper())
    app.run(lambda argv: program.main(argv, paper()))
