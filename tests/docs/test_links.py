"""Links of every page lead somewhere, and every picture is shown by a page."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")]


def links(page):
    """Where a page's relative links lead."""
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return [(page.parent / link).resolve() for link in found if "://" not in link]


def test_links_lead_somewhere_and_every_picture_is_shown():
    linked = {page: links(page) for page in PAGES}
    assert sum(map(len, linked.values())) > 50
    assert [f"{page.name}: {link}" for page, found in linked.items() for link in found if not link.exists()] == []
    shown = {link for found in linked.values() for link in found}
    assert [str(path) for path in (ROOT / "docs").rglob("*.png") if path not in shown] == []
