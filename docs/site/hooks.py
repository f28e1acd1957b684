"""Makes the site of what the repository holds: pages outside docs/, and links to source files, which become pages of their own.

MkDocs calls the functions `on_...` (mkdocs.yml). A link in a page is relative to the page's file in the repository, so that it works where
files are read one by one; here it is replaced by the link to the page that shows that file. A link to nothing is reported by MkDocs, which
`strict` makes an error.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Files outside docs/ that are pages: file of the repository -> page of the site.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "launch/README.md": "launchers.md",
}
FOLDERS = {"launch": "launchers.md", "notebooks": "notebooks/01_noise_and_bounds.md"}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def file_of(page: str) -> str:
    """The file of the repository that a page of the site is made of."""
    return {made: file for file, made in OUTSIDE.items()}.get(page, f"docs/{page}")


def page_of(file: str) -> str | None:
    """The page, or the picture, of the site that shows a file of the repository; None where that does not exist."""
    name = pathlib.PurePosixPath(file)
    if file in OUTSIDE or file in FOLDERS:
        return OUTSIDE.get(file) or FOLDERS[file]
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    if name.suffix == ".ipynb":
        return f"notebooks/{name.stem}.md"
    if (ROOT / file).is_dir():
        return f"source/{file}/index.md"
    return f"source/{file}.md" if (ROOT / file).is_file() else None


def linked(markdown: str, page: str):
    """(match, file of the repository, anchor) of each link of a page to another file; links in code are text."""
    for match in LINK.finditer(CODE.sub(lambda code: " " * len(code.group()), markdown)):
        path, _, anchor = match.group(2).partition("#")
        if path and "://" not in path and not path.startswith("mailto:"):
            yield match, posixpath.normpath(posixpath.join(posixpath.dirname(file_of(page)), path)), anchor


def source_pages(file: str):
    """(page, its text) of a source file as it stands, or of the list of a folder's files and of each; the search leaves them out."""
    path, head = ROOT / file, f"---\nsearch:\n  exclude: true\n---\n# {file}\n\n"
    if path.is_dir():
        inner = sorted(other.name for other in path.iterdir() if other.is_file())
        yield page_of(file), head + "".join(f"- [{name}]({name}.md)\n" for name in inner)
        for name in inner:
            yield from source_pages(f"{file}/{name}")
        return
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":  # records of machines: a few, shortened
        text = "\n".join(f"{line[:400]} ..." for line in text.splitlines()[:5])
    yield page_of(file), f"{head}``````{path.suffix.removeprefix('.') or 'text'}\n{text}\n``````\n"


def listed(nav) -> set[str]:
    """The pages of a tree of lists, mappings and names."""
    inner = nav.values() if isinstance(nav, dict) else nav
    return {nav} if isinstance(nav, str) else {page for entry in inner for page in listed(entry)}


def on_config(config):
    """Pages without an entry in mkdocs.yml stand last."""
    further = sorted({path.name for path in (ROOT / "docs").glob("*.md")} - listed(config.nav))
    config.nav += [{"Further pages": further}] if further else []
    return config


def on_files(files, config):
    for file, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    pages = [(file.src_uri, file.content_string) for file in files if file.src_uri.endswith(".md") and file.inclusion.is_included()]
    found = {file for page, text in pages for _, file, _ in linked(text, page)}
    sources = {page: text for file in found if (page_of(file) or "").startswith("source/") for page, text in source_pages(file)}
    for page in sorted(sources):
        files.append(File.generated(config, page, content=sources[page]))
    for name in ("site.css", "worker.js"):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / "docs" / "site" / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri.startswith("source/"):
        return markdown
    pieces, end = [], 0
    for match, file, anchor in linked(markdown, page.file.src_uri):
        target = page_of(file)
        if target is not None:
            link = posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".") + (f"#{anchor}" if anchor else "")
            pieces += [markdown[end : match.start(2)], link]
            end = match.end(2)
    return "".join([*pieces, markdown[end:]])


SHIM = "https://unpkg.com/iframe-worker/shim"  # what the theme loads for the search of pages that are opened as files


def on_post_page(output, page, config):
    return output.replace(SHIM, "../" * page.file.dest_uri.count("/") + "worker.js")


def on_post_template(output_content, template_name, config):
    return output_content.replace(SHIM, "/worker.js")
