"""What is printed about checkpoints: lines, tables and bars.

Names and values come from files that others may have written, so that nothing of them is taken for markup, or reaches
the terminal as anything but text.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

    from tlaunch.checkpoint.shown import Grid


def printable(text: str) -> str:
    r"""Return a text with escapes in place of what is no visible character: ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(printable(line) + "\n")


def counted(count: int, what: str) -> str:
    """Return ``1 tensor`` or ``2 tensors``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def draw(*grids: Grid) -> None:
    """Print tables: on a terminal folded to its width, else a line for each row, for programs to read."""
    shown = [grid for grid in grids if grid.rows]
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        for at, grid in enumerate(shown):
            console.print(*([""] if at else []), _folded(grid), sep="\n")
    else:
        sys.stdout.write("\n".join("".join(f"{line}\n" for line in _lines(grid)) for grid in shown))


def _lines(grid: Grid) -> Iterator[str]:
    if grid.title:
        yield grid.title
    rows = [tuple(map(printable, row)) for row in ([grid.heads] if grid.heads else []) + list(grid.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = {at for at, head in enumerate(grid.heads) if head in grid.numbers}
    for row in rows:
        cells = (
            text.rjust(width) if at in right else text.ljust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _folded(grid: Grid) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, pad_edge=False, title=grid.title or None, title_justify="left", show_header=bool(grid.heads)
    )
    for head in grid.heads or ("",) * len(grid.rows[0]):
        table.add_column(head, justify="right" if head in grid.numbers else "left", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(printable(text)) for text in row))
    return table


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Draw a bar on the terminal, if there is one, for so many bytes. Yields what is to be told of bytes.

    Nothing else may be printed meanwhile.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(what, total=total)
        yield lambda count: shown.update(task, advance=count)
