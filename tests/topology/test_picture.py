from __future__ import annotations

from dataclasses import replace
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from tests.topology.machines import nvl72
from tlaunch.topology import picture
from tlaunch.topology.files import load
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node
from tlaunch.topology.placement import place

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


def test_the_plan_shows_ranks_and_spares_without_colour() -> None:
    machine, mesh = nvl72(), Mesh.parse("dp=8,tp=8")
    assert drawn(picture.plan(machine, place(machine, mesh, 8), mesh)) == dedent(
        """\
        rack-00 | 18 x 4 = 72 slots | one NVLink domain | 64 ranks, 8 spares
        node-00   0  1  2  3   node-05  20 21 22 23   node-10  40 41 42 43   node-14  56 57 58 59
        node-01   4  5  6  7   node-06  24 25 26 27   node-11  44 45 46 47   node-15  60 61 62 63
        node-02   8  9 10 11   node-07  28 29 30 31   node-12  48 49 50 51   node-16   +  +  +  +
        node-03  12 13 14 15   node-08  32 33 34 35   node-13  52 53 54 55   node-17   +  +  +  +
        node-04  16 17 18 19   node-09  36 37 38 39
        mesh dp=8,tp=8: number = rank, + = spare
        - 64 ranks on 16 nodes
        - 8 of 8 groups of tp=8 in one NVLink domain each
        - 8 of 8 replicas in one rack each
        - 8 spares: 8 in rack-00"""
    )


def test_slots_that_are_not_healthy_are_marked() -> None:
    machine, mesh = load("local").machine(), Mesh.flat(4)
    shown = drawn(picture.plan(machine, place(machine, mesh, 0, usable=machine.slots[1:]), mesh))
    assert "node-00  x +" in shown
    assert "number = rank, + = spare, x = not healthy" in shown


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
