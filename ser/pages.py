"""HTML that needs nothing but itself: no network, no script; readable on a phone and on paper, in light and dark."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

__all__ = ["bar", "details", "image", "matrix", "page", "player", "section", "table"]

STYLE = """
:root { --ink: #1d2733; --soft: #5a6675; --line: #d9dee5; --paper: #ffffff; --box: #f5f7fa; --mark: 47, 111, 159; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ef; --soft: #9aa7b5; --line: #38424f; --paper: #14191f; --box: #1d242c; --mark: 96, 165, 214; }
  img { background: #fff; border-radius: 4px; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; color: var(--ink); background: var(--paper);
       font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; padding-top: .5rem;
     border-top: 2px solid var(--line); } h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .4rem 0; } .soft, figcaption { color: var(--soft); font-size: .875rem; }
nav a { margin-right: 1rem; } a { color: rgb(var(--mark)); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.number, th.number { text-align: right; } .matrix td { text-align: center; }
.matrix .soft { color: inherit; opacity: .75; }
.box { background: var(--box); padding: .6rem .9rem; border-radius: 6px; }
.tag { background: rgba(var(--mark), .18); border-radius: 4px; padding: 0 .4rem; margin-right: .3rem; }
.bar { background: rgba(var(--mark), .8); height: .7rem; border-radius: 2px; min-width: 1px; }
figure { margin: .75rem 0; } img { max-width: 100%; height: auto; } audio { height: 2rem; vertical-align: middle; }
pre { background: var(--box); padding: .75rem; overflow-x: auto; font-size: .75rem; border-radius: 6px; }
summary { cursor: pointer; margin: .5rem 0; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def section(name: str, title: str, body: Iterable[str]) -> str:
    """Return a section with an anchor; nothing where its body is empty."""
    inner = "\n".join(part for part in body if part)
    return f'<section id="{escape(name)}">\n<h2>{escape(title)}</h2>\n{inner}\n</section>' if inner else ""


def table(header: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()) -> str:
    """Return a table that scrolls sideways where it must; columns ``numbers`` are set to the right.

    A cell that is a ``Raw`` is HTML already; all others are escaped.
    """

    def cell(kind: str, place: int, value: object) -> str:
        right = ' class="number"' if place in numbers else ""
        return f"<{kind}{right}>{value if isinstance(value, Raw) else escape(str(value))}</{kind}>"

    head = "".join(cell("th", place, value) for place, value in enumerate(header))
    lines = ("".join(cell("td", place, value) for place, value in enumerate(row)) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


class Raw(str):
    """Text that is HTML already."""


def matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Return a confusion matrix: counts, rates within each reference, and rates as shades."""
    rows = []
    for label, row in zip(labels, counts, strict=True):
        total = sum(row)
        cells = []
        for count in row:
            rate = count / total if total else 0.0
            shown = f'{count}<br><span class="soft">{100 * rate:.0f} %</span>' if count else ""
            cells.append(f'<td style="background: rgba(var(--mark), {0.75 * rate:.2f})">{shown}</td>')
        rows.append(f"<tr><th>{escape(label)} ({total})</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    return (
        f'<div class="wide"><table class="matrix">\n<thead><tr><th>reference (clips)</th>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + '\n</tbody></table></div>\n<p class="soft">Columns are answers.</p>'
    )


def image(path: Path, words: str) -> str:
    """Return a PNG inside the page with a caption; nothing where there is no such file."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    alt = escape(words, quote=True)
    return (
        f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{escape(words)}</figcaption></figure>'
    )


def player(sound: bytes) -> Raw:
    """Return a player of WAV data."""
    data = base64.b64encode(sound).decode()
    return Raw(f'<audio controls preload="none" src="data:audio/wav;base64,{data}"></audio>')


def bar(share: float) -> Raw:
    """Return a horizontal bar of a share from 0 to 1."""
    return Raw(
        f'<div style="width: 12rem"><div class="bar" style="width: {100 * min(max(share, 0), 1):.1f}%"></div></div>'
    )


def details(summary: str, text: str) -> str:
    """Return text that is folded away."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
