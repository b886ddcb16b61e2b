from __future__ import annotations

from dataclasses import replace
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from tests.topology.machines import nvl72
from tlaunch.topology import picture
from tlaunch.topology.files import load
from tlaunch.topology.model import Machine, Node

if TYPE_CHECKING:
    from rich.console import RenderableType


def drawn(what: RenderableType, width: int = 100) -> str:
    """Return what a plain terminal of that width shows, without colour and without the frame's corners and sides."""
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(what)
    text = capture.get()
    assert "\x1b" not in text
    assert all(len(line) <= width for line in text.splitlines())
    return "\n".join(line.strip("╭─╮│╰╯ ") for line in text.splitlines() if line.strip("╭─╮│╰╯ "))


def test_nvl72_fits_on_a_screen() -> None:
    assert drawn(picture.show(nvl72())) == dedent(
        """\
        rack-00 | 18 x 4 = 72 slots | one NVLink domain
        node-00  0 1 2 3   node-04  0 1 2 3   node-08  0 1 2 3   node-12  0 1 2 3   node-15  0 1 2 3
        node-01  0 1 2 3   node-05  0 1 2 3   node-09  0 1 2 3   node-13  0 1 2 3   node-16  0 1 2 3
        node-02  0 1 2 3   node-06  0 1 2 3   node-10  0 1 2 3   node-14  0 1 2 3   node-17  0 1 2 3
        node-03  0 1 2 3   node-07  0 1 2 3   node-11  0 1 2 3
        1 rack, 18 nodes, 72 slots"""
    )


def test_the_racks_of_a_large_machine_are_counted() -> None:
    shown = drawn(picture.show(Machine((*nvl72(100).nodes, Node("alone", 2, rack="r")))))
    assert len(shown.splitlines()) < 40
    assert "96 racks more: 18 x 4 = 72 slots | one NVLink domain" in shown
    assert "1 rack more: 1 x 2 = 2 slots" in shown
    assert shown.endswith("101 racks, 1801 nodes, 7202 slots")


def test_domains_inside_a_rack_have_titles_of_their_own() -> None:
    nodes = [Node(f"n{i}", 2, domain=f"d{i // 2}", rack="r", pod="p") for i in range(4)]
    assert drawn(picture.show(Machine((*nodes, Node("n4", 3, rack="r", pod="p"), Node("n5", 1))))) == dedent(
        """\
        p / r | 5 nodes, 11 slots | 3 NVLink domains
        NVLink domain d0
        n0  0 1   n1  0 1
        NVLink domain d1
        n2  0 1   n3  0 1
        no NVLink between nodes
        n4  0 1 2
        no rack | 1 x 1 = 1 slot | no NVLink between nodes
        n5  0
        2 racks, 6 nodes, 12 slots"""
    )


def test_nodes_with_nvlink_inside_are_told_apart_from_nodes_without() -> None:
    hgx = load("hgx").machine(2)
    assert "NVLink inside each node" in drawn(picture.show(hgx))
    bare = Machine(tuple(replace(node, domain=None) for node in hgx))
    assert "no NVLink between nodes" in drawn(picture.show(bare))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_width_shows_every_node(width: int) -> None:
    shown = drawn(picture.show(nvl72(2)), width)
    assert all(f"node-{index:02d}  0 1 2 3" in shown for index in range(36))


def test_names_are_not_read_as_markup() -> None:
    assert "[red]" in drawn(picture.show(Machine((Node("[red]", 1, rack="[bold]"),))))
