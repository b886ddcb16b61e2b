"""One answer out of many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlaunch.topology.discover.merge import Discovery, Found, merge
from tlaunch.topology.discover.report import RANK, SOURCES, Coordinates, Gpu, Report
from tlaunch.topology.model import Node, TopologyError


def report(source: str, origin: str = "", **nodes: Coordinates) -> Report:
    return Report(source, origin or source, nodes)


def lines(found: Discovery) -> list[str]:
    return [str(conflict) for conflict in found.contradictions]


def test_levels_are_taken_one_by_one() -> None:
    found = merge(
        [
            report("slurm", a=Coordinates("spine", "leaf")),
            report("nvml", a=Coordinates(domain="clique.1", slots=4)),
            report("file", a=Coordinates(rack="r1")),
        ]
    )
    assert found.places == {
        "a": {"pod": Found("spine", "slurm"), "rack": Found("r1", "file"), "domain": Found("clique.1", "nvml")}
    }
    assert found.node("a") == Node("a", 4, "clique.1", "r1", "spine")
    assert (found.contradictions, found.warnings) == ((), ())


def test_other_names_for_the_same_groups_are_no_contradiction() -> None:
    found = merge(
        [
            report("file", a=Coordinates(rack="r1"), b=Coordinates(rack="r1"), c=Coordinates(rack="r2")),
            report("slurm", a=Coordinates(rack="b7"), b=Coordinates(rack="b7"), c=Coordinates(rack="b8")),
        ]
    )
    assert found.contradictions == ()


def test_nodes_of_lesser_sources_join_those_that_they_are_with() -> None:
    found = merge(
        [
            report("nvml", a=Coordinates(domain="clique.1")),
            report("scontrol", a=Coordinates(domain="b7"), b=Coordinates(domain="b7"), c=Coordinates(domain="b8")),
        ]
    )
    assert {name: found.places[name]["domain"] for name in "abc"} == {
        "a": Found("clique.1", "nvml"),
        "b": Found("clique.1", "scontrol"),
        "c": Found("b8", "scontrol"),
    }


def test_nobody_joins_a_domain_that_ends_at_its_node() -> None:
    found = merge(
        [
            report("nvml", a=Coordinates(domain="a")),
            report("scontrol", a=Coordinates(domain="b7"), b=Coordinates(domain="b7")),
        ]
    )
    assert found.places["b"]["domain"] == Found("b7", "scontrol")
    assert lines(found) == ["a: domain: nvml says a, scontrol says b7 (with other nodes); nvml wins"]


def test_other_words_of_those_who_use_the_same_are_a_contradiction() -> None:
    found = merge([report("nvml", a=Coordinates(domain="x.1")), report("gpu-clique", a=Coordinates(domain="x.2"))])
    assert found.places["a"]["domain"] == Found("x.1", "nvml")
    assert lines(found) == ["a: domain: nvml says x.1, gpu-clique says x.2; nvml wins"]


def test_who_joins_what_another_parts() -> None:
    found = merge(
        [
            report("file", a=Coordinates(rack="r1"), b=Coordinates(rack="r2")),
            report("slurm", a=Coordinates(rack="leaf"), b=Coordinates(rack="leaf")),
        ]
    )
    assert lines(found) == ["b: rack: file says r2, slurm says leaf (as of a, which file puts into r1); file wins"]


def test_who_parts_what_another_joins() -> None:
    found = merge(
        [
            report("file", a=Coordinates(rack="r1"), b=Coordinates(rack="r1")),
            report("slurm", a=Coordinates(rack="l1"), b=Coordinates(rack="l2")),
        ]
    )
    assert lines(found) == [
        "b: rack: file says r1, slurm says l2 (but l1 of a, which file puts into r1 too); file wins"
    ]


def test_slots_are_what_the_job_may_use() -> None:
    found = merge(
        [
            report("file", a=Coordinates(slots=8), b=Coordinates(slots=8)),
            report("slurm", a=Coordinates(slots=4)),
        ]
    )
    assert found.slots == {"a": Found("4", "slurm"), "b": Found("8", "file")}
    assert lines(found) == ["a: slots: slurm says 4, file says 8; slurm wins"]


def test_one_source_in_two_minds_is_an_error() -> None:
    with pytest.raises(TopologyError) as error:
        merge(
            [
                report("kubernetes", "labels", a=Coordinates(rack="r1")),
                report("kubernetes", "nodes.json", a=Coordinates(rack="r2")),
            ]
        )
    assert str(error.value) == (
        "kubernetes: a: rack: is r1 and r2 in labels and nodes.json; expected every node in one rack"
    )


def test_two_gpus_with_one_uuid_are_an_error() -> None:
    with pytest.raises(TopologyError) as error:
        merge([Report("nvml", "x", gpus={"a": (Gpu(0, "GPU-1"), Gpu(1)), "b": (Gpu(3, "GPU-1"), Gpu(4))})])
    assert str(error.value) == (
        "nvml: b gpu 3: uuid: GPU-1 is that of a gpu 0 too; expected a uuid of its own for each GPU"
    )


def test_a_domain_in_two_racks_is_told() -> None:
    found = merge(
        [
            report("gpu-clique", a=Coordinates(domain="c.1"), b=Coordinates(domain="c.1")),
            report("slurm", a=Coordinates(rack="l1"), b=Coordinates(rack="l2")),
        ]
    )
    assert found.warnings == ("domain c.1 (gpu-clique) is in rack l1 and l2 (slurm); the narrower level counts first",)


def test_only_the_nodes_that_are_asked_for() -> None:
    found = merge([report("file", a=Coordinates(rack="r1"), b=Coordinates(rack="r1"))], ["b", "c"])
    assert found.nodes == ("b", "c")
    assert found.machine().nodes == (Node("b", 1, rack="r1"), Node("c", 1))


def test_the_machine_is_in_physical_order_and_numbers_count() -> None:
    racks = {"n10": "r1", "n9": "r2", "n1": "r2", "n2": "r1"}
    found = merge([Report("file", "x", {name: Coordinates(rack=rack) for name, rack in racks.items()})])
    assert found.nodes == ("n1", "n2", "n9", "n10")
    assert [node.name for node in found.machine()] == ["n1", "n9", "n2", "n10"]


# --- properties -----------------------------------------------------------------------------------------------------

PLACES = st.none() | st.sampled_from(["p", "q", "r"])
SPOKEN = st.builds(Coordinates, PLACES, PLACES, PLACES, st.none() | st.integers(1, 3))


@st.composite
def spoken(draw: st.DrawFn) -> list[Report]:
    """Draw one report each from a few sources about a few nodes."""
    sources = draw(st.lists(st.sampled_from([source.name for source in SOURCES]), unique=True, max_size=4))
    nodes = st.dictionaries(st.sampled_from(["n1", "n2", "n3", "n10"]), SPOKEN, max_size=4)
    return [Report(source, "x", draw(nodes)) for source in sources]


@given(spoken(), st.randoms(use_true_random=False))
def test_order_changes_nothing(reports: list[Report], random: object) -> None:
    mixed = list(reports)
    shuffle = getattr(random, "shuffle")  # noqa: B009  hypothesis' Random
    shuffle(mixed)
    turned = [Report(one.source, one.origin, dict(reversed(list(one.nodes.items())))) for one in mixed]
    assert merge(turned) == merge(reports)


@given(spoken())
def test_the_first_that_says_something_wins_and_nobody_else_is_heard(reports: list[Report]) -> None:
    found = merge(reports)
    ranked = sorted(reports, key=lambda one: RANK[one.source])
    for node in found.nodes:
        for level in ("pod", "rack", "domain"):
            speaking = [one for one in ranked if node in one.nodes and one.nodes[node].at(level) is not None]
            won = found.places[node].get(level)
            assert (won and won.source) == (speaking[0].source if speaking else None)


@given(spoken())
def test_one_source_alone_is_taken_at_its_word(reports: list[Report]) -> None:
    for one in reports:
        found = merge([one])
        assert found.contradictions == ()
        for node, coordinates in one.nodes.items():
            told = found.node(node)
            assert (told.pod, told.rack, told.domain) == (coordinates.pod, coordinates.rack, coordinates.domain)


@given(spoken())
def test_another_name_for_every_place_changes_no_contradiction_between_different_words(reports: list[Report]) -> None:
    """Sources with words of their own: only which nodes they put together counts."""
    own = [one for one in reports if one.source in {"file", "topograph", "gke", "slurm"}]

    def renamed(one: Report, it: Coordinates) -> Coordinates:
        pod, rack, domain = (place and f"{one.source}-{place}" for place in (it.pod, it.rack, it.domain))
        return Coordinates(pod, rack, domain)

    other = [Report(one.source, one.origin, {node: renamed(one, it) for node, it in one.nodes.items()}) for one in own]
    places = {(c.node, c.level, c.source, c.other) for c in merge(own).contradictions if c.level != "slots"}
    assert {(c.node, c.level, c.source, c.other) for c in merge(other).contradictions} == places
