"""The documentation site's hook for MkDocs: pages that are generated, and links that lead out of docs/.

`make docs` loads it (mkdocs.yml). README, CONTRIBUTING and CHANGELOG become pages; the settings are listed from the
code, and each room of the package gets a page with its API.
"""

from __future__ import annotations

import posixpath
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages at the repository's root, and their names in the site."""
ROOMS = (
    "training",
    "algorithms",
    "config",
    "data",
    "grading",
    "generation",
    "megatron",
    "conversion",
    "evaluation",
    "metrics",
    "planning",
)
"""Packages below tempo_megatron that get an API page each."""
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)")
PAGE_NAME = re.compile(r"(?<!\[)`(?:docs/)?((?:results/)?[\w-]+\.md)`")
CODE = re.compile(r"(^```.*?^```|^ {4}.*?$)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the API pages to the navigation."""
    for section in config.nav or []:
        if "API" in section:
            section["API"] = [{room: f"api/{room}.md"} for room in ROOMS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    pages = {name: (ROOT / source).read_text() for source, name in ROOT_PAGES.items()}
    pages["settings.md"] = settings_page()
    pages |= {f"api/{room}.md": api_page(room) for room in ROOMS}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that hold in the repository are made to hold in the site: to its pages, or to the repository's files."""
    source = next((root for root, name in ROOT_PAGES.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")

    def site_link(target: str) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        name = ROOT_PAGES.get(path, path.removeprefix("docs/"))
        if name in files.src_uris and not name.endswith("/"):
            return posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".")
        if not (ROOT / path).exists():
            return target  # MkDocs warns, and a strict build fails
        return f"{config.repo_url.rstrip('/')}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"

    def page_link(match: re.Match[str]) -> str:
        name = match[1]
        near = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), name))
        target = next((uri for uri in (name, near) if uri in files.src_uris), None)
        if target is None:
            return match[0]
        return f"[{match[0]}]({posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or '.')})"

    parts = CODE.split(markdown)
    for index in range(0, len(parts), 2):  # the others are code
        parts[index] = LINK.sub(lambda match: site_link(match[0]), parts[index])
        parts[index] = PAGE_NAME.sub(page_link, parts[index])
    return "".join(parts)


def settings_page() -> str:
    """Every setting with default and meaning, a table for each group, read from the dataclasses."""
    sys.path.insert(0, str(ROOT))
    from tempo_megatron.config import Config, documented_keys

    meanings = {name: item.metadata.get("help", "") for name, item in Config.__dataclass_fields__.items()}
    groups: dict[str, list[str]] = {}
    for key, default, meaning in documented_keys():
        group, _, _ = key.rpartition(".")
        groups.setdefault(group, []).append(f"| `{key}` | {default_cell(default)} | {cell(meaning)} |")
    lines = [
        "# Settings",
        "",
        "Every key of a recipe, its default and its meaning. The page is read from the code;",
        "`tempo settings` prints the same; `tempo settings TEXT` prints those whose key or meaning contains the text.",
        "A recipe is a YAML file of these keys. `key=value` on the command line replaces one of them:",
        "",
        "    tempo train recipes/demo.yaml loop.iterations=100 policy.optimizer.learning_rate=1e-5",
    ]
    for group, rows in groups.items():
        meaning = meanings.get(group, "")
        lines += ["", f"## {group or 'The run'}", ""]
        if meaning:
            lines += [meaning[0].upper() + meaning[1:] + ".", ""]
        lines += ["| setting | default | meaning |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def default_cell(default: Any) -> str:
    """A default as YAML would have it, or a word for what is empty."""
    if isinstance(default, StrEnum):
        return f"`{default.value}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if default is None or default in ("", [], {}):
        return "(none)"
    return f"`{default}`"


def cell(text: str) -> str:
    """Text that may stand in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def api_page(room: str) -> str:
    """The modules of a room, in order of their names, for mkdocstrings."""
    package = ROOT / "tempo_megatron" / room
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(package.rglob("*.py"))
        if path.name != "__init__.py" or path.parent == package
    ]
    return "\n\n".join([f"# `tempo_megatron.{room}`", *(f"::: {module}" for module in modules)]) + "\n"
