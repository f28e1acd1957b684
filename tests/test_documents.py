"""README, citation and changelog: what they name exists, and their facts are those of the code."""

import pathlib
import re

import pytest

import dlmjax

ROOT = pathlib.Path(__file__).parents[1]


def test_the_citation_and_the_changelog_are_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE).group(1) == dlmjax.__version__
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE).group(1) == dlmjax.__version__


def test_the_families_of_the_readme_are_the_configs_of_a_process():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("| family |")[2].partition("\n\n")[0].splitlines()[2:]
    named = {name for row in table for name in re.findall(r"`([^`]+)`", row.split("|")[3])}
    listed = text.partition("\nConfigs of a process:")[2].partition("Configs of a task:")[0]
    assert named - {"llada_8b"} == set(re.findall(r"`([^`]+)`", listed))


PAGES = sorted(path for form in ("*.md", "docs/**/*.md", "launch/*.md") for path in ROOT.glob(form))


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as they are made of their text: lower case, hyphens, no punctuation or links."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "]", heading).lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_lead_to_a_file_and_to_a_heading(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)):
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        if "://" not in target and not (found.exists() and (not anchor or anchor in anchors(found))):
            wrong.append(target)
    assert not wrong


def test_pages_that_the_code_names_exist():
    sources = [path for folder in ("dlmjax", "configs", "launch", "benchmarks") for path in ROOT.glob(f"{folder}/**/*.py")]
    named = {
        (str(path.relative_to(ROOT)), page) for path in sources for page in re.findall(r"docs/[\w/]+\.md", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 20 and [(path, page) for path, page in sorted(named) if not (ROOT / page).is_file()] == []
