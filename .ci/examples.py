"""Writes the code of the README and of pages into a folder, a file for each, for pyright to check as a user's."""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
FRAGMENTS = {"docs/checkpoints/README.md"}  # code that goes on from a reader's own
PROGRAMS = {"docs/how_to/logging.md"}  # code for the programs, which are not installed
RULES = {
    "typeCheckingMode": "strict",
    # What JAX, Flax and optax leave open themselves: jax.config.update, jax.devices(), nn.Dropout()(x), and others.
    "reportMissingTypeStubs": False,
    "reportUnknownArgumentType": False,
    "reportUnknownMemberType": False,
    "reportUnknownVariableType": False,
}


def main(folder: str) -> None:
    """Writes the files, and the rules beside them."""
    out = pathlib.Path(folder)
    out.mkdir()
    for page in PAGES:
        name = page.relative_to(ROOT)
        pieces = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        if pieces and str(name) not in FRAGMENTS | PROGRAMS:
            (out / f"{'_'.join(name.with_suffix('').parts)}.py").write_text("\n".join(pieces))
    (out / "pyrightconfig.json").write_text(json.dumps(RULES))


if __name__ == "__main__":
    main(sys.argv[1])
