"""Hooks of the documentation site: pages are written for the repository, and the site shows docs/ only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?!https?:)[^)#\s]+)[^)]*\)")
_FENCES = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
_PARAGRAPH_THEN_LIST = re.compile(r"^((?![*#|>]|\d+\. | {2}).+\n)(?=(?:\*|1\.) )", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:  # noqa: ANN401 (MkDocs's interface)
    """Return a page's text without links to files outside docs/, and with an empty line before each list.

    GitHub shows both; MkDocs reports such links as broken, and Markdown in Python joins such lists to the paragraph.
    """
    docs = Path(config.docs_dir).resolve()
    folder = (docs / page.file.src_uri).parent

    def without_outside(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        return link[1] if target.exists() and not target.is_relative_to(docs) else link[0]

    parts = _FENCES.split(markdown)
    parts[::2] = (_PARAGRAPH_THEN_LIST.sub(r"\1\n", _LINK.sub(without_outside, part)) for part in parts[::2])
    return "".join(parts)
