"""Puts the results in bench/results/ into bench/README.md, and draws the payload curve.

    python -m bench.render

Between `<!-- bench:NAME -->` and `<!-- bench:end -->` stands what was measured: the table, and
machine, versions and date below it. What it means stands around it, written by hand.
"""

import argparse
import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.payload_picture import draw
from bench.results import RESULTS, Document, load
from bench.tables import Column, markdown

README = Path("bench/README.md")
PICTURE = Path("docs/pictures/payload.svg")
_SECTION = re.compile(r"(<!-- bench:(?!end)(\w+) -->\n).*?(<!-- bench:end -->)", re.S)


def columns_of(benchmark: str) -> Sequence[Column]:
    """Those of the module that has measured it."""
    found: Sequence[Column] = importlib.import_module(f"bench.{benchmark}").COLUMNS
    return found


def caption(document: Document) -> str:
    """What the figures depend on, in a line. Pure."""
    where, still = document.machine, document.stillness
    versions = ", ".join(f"{name} {value}" for name, value in document.versions.items())
    quiet = "" if still["quiet"] else ", **not a quiet one**"
    return (
        f"`{document.command}`, {document.date}: {where['processor']}, {where['cpus']} CPUs, "
        f"{where['memory_gb']:g} GB, {where['architecture']}, {where['system']}; {versions}; "
        f"others used {still['others']:.1%} of the processors, the host took "
        f"{still['stolen']:.1%}{quiet}."
    )


def section(document: Document, columns: Sequence[Column]) -> str:
    """Table, notes and caption of one benchmark. Pure."""
    parts = [markdown(columns, document.rows), *document.notes, caption(document)]
    return "\n\n".join(parts) + "\n"


def render(text: str, sections: Mapping[str, str]) -> str:
    """The text with every section that there is in its place; the others stay. Pure.

    Raises:
        ValueError: a section has no place.
    """
    places = {name for _start, name, _end in _SECTION.findall(text)}
    if missing := sorted(set(sections) - places):
        raise ValueError(
            f"no place for {', '.join(missing)}: put <!-- bench:{missing[0]} --> and "
            "<!-- bench:end --> where it is to stand"
        )

    def fill(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        return f"{start}{sections[name]}{end}" if name in sections else match[0]

    return _SECTION.sub(fill, text)


def render_files(results: Path, readme: Path, picture: Path) -> list[str]:
    """Render what there is; which benchmarks."""
    documents = [load(path) for path in sorted(results.glob("*.json"))]
    sections = {d.benchmark: section(d, columns_of(d.benchmark)) for d in documents}
    readme.write_text(render(readme.read_text(), sections))
    for document in documents:
        if document.benchmark == "payload":
            draw(document.rows, caption(document).replace("**", ""), picture)
    return list(sections)


def main() -> None:
    """Render."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--readme", type=Path, default=README)
    options.add_argument("--picture", type=Path, default=PICTURE)
    chosen = options.parse_args()
    done = render_files(chosen.results, chosen.readme, chosen.picture)
    print(f"{chosen.readme}: {', '.join(done) or 'no results yet'}")


if __name__ == "__main__":
    main()
