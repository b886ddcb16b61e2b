"""The picture of a plan, in the terminal and as SVG, and the document."""

from __future__ import annotations

import json
from textwrap import dedent
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from tests.topology.machines import hgx, nvl72
from tests.topology.test_picture import drawn
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Machine, Node, TopologyError
from tlaunch.topology.planned import Planned, document, planned
from tlaunch.topology.planpicture import plan
from tlaunch.topology.svg import draw

if TYPE_CHECKING:
    from rich.console import RenderableType

SVG = "{http://www.w3.org/2000/svg}"


def of(machine: Machine, mesh: str, spares: int, *bad: int) -> Planned:
    return planned(machine, Mesh.parse(mesh), spares, bad=[machine.slots[index] for index in bad])


def coloured(what: RenderableType) -> str:
    console = Console(width=100, force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def test_the_plan_shows_ranks_and_spares_without_colour() -> None:
    shown = drawn(plan(of(nvl72(), "dp=8,tp=8", 8)))
    assert shown == dedent(
        """\
        rack-00 | 18 x 4 = 72 slots | one NVLink domain | 64 ranks, 8 spares
        node-00   0  1  2  3   node-05  20 21 22 23   node-10  40 41 42 43   node-14  56 57 58 59
        node-01   4  5  6  7   node-06  24 25 26 27   node-11  44 45 46 47   node-15  60 61 62 63
        node-02   8  9 10 11   node-07  28 29 30 31   node-12  48 49 50 51   node-16   +  +  +  +
        node-03  12 13 14 15   node-08  32 33 34 35   node-13  52 53 54 55   node-17   +  +  +  +
        node-04  16 17 18 19   node-09  36 37 38 39
        mesh dp=8,tp=8: number = rank, one colour = one tp group, + = spare
        - 64 ranks on 16 nodes
        - 8 of 8 groups of tp=8 in one NVLink domain each
        - 8 of 8 replicas in one rack each
        - 8 spares: 8 in rack-00
        order of the ranks  locality score
        tlaunch                      100.0
        host names                   100.0
        arrival                      100.0
        random                       100.0
        Slurm blocks                 100.0
        survives, by swaps within a rack:
        - any 8 GPUs in each rack
        - any 2 nodes in each rack"""
    )


def test_the_locality_stands_beside_that_of_other_orders() -> None:
    shown = drawn(plan(of(nvl72(4), "dp=8,pp=4,tp=8", 32)))
    lines = {line.split("  ")[0]: line.split()[-4:] for line in shown.splitlines()}
    assert lines["order of the ranks"][-3:] == ["tp=8", "pp=4", "dp=8"]
    assert lines["tlaunch"][1:3] == ["0", "0"], "no tp or pp edge leaves a rack"
    assert float(lines["tlaunch"][0]) > float(lines["host names"][0]) > float(lines["random"][0])
    assert "below each dimension: ring edges that leave a rack, of tp 256, pp 256, dp 256" in shown


def test_slots_that_are_not_healthy_are_marked() -> None:
    shown = drawn(plan(of(nvl72(), "dp=8,tp=8", 8, 5)))
    assert "node-01   +  x  +  +" in shown
    assert "+ = spare, x = not healthy" in shown
    assert "64 ranks, 7 spares, 1 bad" in shown
    assert "! 7 of 8 spares: the other slots are bad" in shown


def test_bad_slots_that_cost_a_spare_are_an_error_when_strict() -> None:
    machine = nvl72()
    with pytest.raises(TopologyError, match=r"^7 of 8 spares: the other slots are bad$"):
        planned(machine, Mesh.parse("dp=8,tp=8"), 8, bad=machine.slots[:1], strict=True)


def test_a_large_machine_is_drawn_in_part_and_counted_in_full() -> None:
    shown = drawn(plan(of(nvl72(200), "dp=1600,tp=8", 1600, 72 * 150)))
    assert len(shown.splitlines()) < 60
    assert "194 racks more with 64 ranks, 8 spares each" not in shown
    assert "195 racks more with 64 ranks, 8 spares each" in shown
    assert "1 rack more with 64 ranks, 7 spares, 1 bad each" in shown


def test_a_rack_with_many_nodes_is_drawn_in_part() -> None:
    machine = Machine(tuple(Node(f"node-{index}", 1, rack="r") for index in range(1000)))
    assert "and 928 nodes more" in drawn(plan(of(machine, "dp=1000", 0)))


def test_colours_tell_groups_apart_and_a_pipe_gets_none() -> None:
    picture = plan(of(nvl72(), "dp=2,pp=4,tp=8", 8))
    text = coloured(picture)
    styles = [text.split(f"{rank}\x1b")[0].rpartition("\x1b")[2] for rank in (10, 15, 16, 30)]
    assert styles[0] == styles[1] != styles[2] != styles[3]
    assert "\x1b" not in drawn(picture)


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_every_width_shows_every_node(width: int) -> None:
    shown = drawn(plan(of(nvl72(), "dp=8,tp=8", 8)), width)
    assert all(f"node-{index:02d}" in shown for index in range(18))


def test_the_svg_has_a_cell_for_each_slot() -> None:
    text = draw(of(nvl72(2), "dp=16,tp=8", 16, 3))
    root = ET.fromstring(text)  # our own text
    titles = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert len(titles) == 144
    assert "node-01/gpu-0: rank 0" in titles
    assert sum(title.endswith(": spare") for title in titles) == 15
    assert "node-00/gpu-3: not healthy" in titles
    assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), "it needs nothing from outside"
    assert draw(of(nvl72(2), "dp=16,tp=8", 16, 3)) == text


def test_names_in_the_svg_are_not_markup() -> None:
    node = Node("<&>", 1, rack='"r"')
    assert "<&>" in [text.text for text in ET.fromstring(draw(of(Machine((node,)), "dp=1", 0))).iter(f"{SVG}text")]


def test_a_large_svg_is_bounded() -> None:
    assert len(draw(of(nvl72(200), "dp=1600,tp=8", 1600))) < 1_000_000


def test_the_document_says_it_all() -> None:
    said = json.loads(json.dumps(document(of(hgx(8), "dp=7,tp=8@domain", 8, 9))))
    assert said["mesh"] == "dp=7,tp=8@domain"
    assert len(said["ranks"]) == 56
    assert said["nodes"][0] == {"name": "node-00", "slots": 8, "domain": "node-00", "rack": "rack-00"}
    assert said["bad"] == ["node-01/gpu-1"]
    assert len(said["spares"]) == 7
    assert said["unmet"] == ["7 of 8 spares: the other slots are bad"]
    assert said["survives"]["swap_scope"] == "rack"
    assert said["survives"]["any"]["GPU"] == 0
    assert set(said["locality"]) >= {"tlaunch", "host names", "random"}
    assert said["locality"]["tlaunch"]["dimensions"]["tp"]["ring"] == {
        "edges": 56,
        "leaving_domain": 0,
        "leaving_rack": 0,
        "leaving_pod": 0,
    }
