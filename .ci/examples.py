"""Writes the code of the README and of pages into a folder, a file for each, for pyright to check as a user's."""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/tutorials/*.md")),
    *sorted(ROOT.glob("docs/explanation/*.md")),
    ROOT / "docs/how_to/diagnostics.md",
]
RULES = {
    "typeCheckingMode": "strict",
    # What JAX and Flax leave open: jax.config.update, jax.devices(), nn.Dropout()(x) and others.
    "reportUnknownArgumentType": False,
    "reportUnknownMemberType": False,
    "reportUnknownVariableType": False,
    "reportMissingTypeStubs": False,
}


def main(folder: str) -> None:
    """Writes the files, and the rules beside them."""
    out = pathlib.Path(folder)
    out.mkdir()
    for page in PAGES:
        if pieces := re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            (out / f"{page.stem}.py").write_text("\n".join(pieces))
    (out / "pyrightconfig.json").write_text(json.dumps(RULES))


if __name__ == "__main__":
    main(sys.argv[1])
