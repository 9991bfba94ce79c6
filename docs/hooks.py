"""Brings pages that stand beside the code, such as CHANGELOG.md, into the documentation, and their links with them.

Links in a page lead where they lead in the repository. Here, those to pages and pictures become links of the site.
Those to code become links to the repository, if mkdocs.yml has its address, or else text.
"""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
BESIDE = ("BUILD.md", "CHANGELOG.md", "CONTRIBUTING.md", *ROOT.glob("experiments/*/README.md"))
_COLAB = "https://colab.research.google.com/github"
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages beside the code."""
    for name in BESIDE:
        path = ROOT / name
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page from places in the repository to places in the site."""
    here = pathlib.Path(page.file.abs_src_path or "")
    if config.repo_url and page.file.src_uri == "tutorials/first_pipeline.md":
        at = config.repo_url.removeprefix("https://github.com/").strip("/")
        markdown += f"\nOr [open the notebook in Colab]({_COLAB}/{at}/blob/main/notebooks/quickstart.ipynb).\n"

    def rewritten(match: re.Match[str]) -> str:
        picture, text, link, anchor = match.groups()
        if "://" in link or here.suffix != ".md":
            return match[0]
        return f"{picture}{_link(text, here, link, anchor or '', page, files, config)}"

    return _LINK.sub(rewritten, markdown)


def _link(text: str, here: pathlib.Path, link: str, anchor: str, page: Page, files: Files, config: Any) -> str:
    target = pathlib.Path(os.path.normpath(here.parent / link))
    name = target.relative_to(ROOT).as_posix()
    if name == "README.md":
        name = "docs/index.md"
    inside = name.removeprefix("docs/")
    if (found := files.get_file_from_path(inside)) is not None:
        start = pathlib.PurePosixPath(page.file.src_uri).parent
        return f"[{text}]({os.path.relpath(found.src_uri, start)}{anchor})"
    if not target.exists():
        return f"[{text}]({link}{anchor})"  # dead: the strict build says so
    if config.repo_url:
        return f"[{text}]({config.repo_url}/blob/main/{name}{anchor})"
    return text
