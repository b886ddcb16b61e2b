"""From the store to the core's snapshot: what counts, and what does not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tlaunch.launcher.control.layout import Keys
from tlaunch.launcher.control.records import Ack, Drain, Registration, Rendezvous, Report, Stop
from tlaunch.launcher.control.snapshot import Moment, View, snapshot
from tlaunch.launcher.core.assign import Assignment
from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.codec import MAX_BYTES, CodecError, encode
from tlaunch.launcher.core.events import Exit
from tlaunch.launcher.core.plan import Plan, Seat
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.launcher.core.stored import stored as stored_plan
from tlaunch.launcher.store.protocol import KeyValue
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import Node, Slot

KEYS = Keys("job")
SPEC = JobSpec("job", nodes=2, spares=2, mesh=Mesh.flat(2))
PLAN = Plan(3, Mesh.flat(2), (Seat(0, Slot("node-2", 0), 3), Seat(1, Slot("node-10", 0), 3)))


def registration(name: str) -> Registration:
    return Registration(Node(name, 2, "d", "r"), "host", 1, name, "127.0.0.1:1")


def look(records: Mapping[str, Any], *, settled: bool = True, gone: frozenset[str] = frozenset()) -> Cluster:
    return snapshot(View(KEYS, stored(records)), SPEC, Moment(10.0, 5.0, 1.0, settled), gone)


def stored(records: Mapping[str, Any]) -> dict[str, KeyValue]:
    """Return keys as they stand in the store; bytes stand there as they are."""
    whole = {key: stored_plan(record, None) if isinstance(record, Plan) else record for key, record in records.items()}
    values = {key: record if isinstance(record, bytes) else encode(record) for key, record in whole.items()}
    return {key: KeyValue(key, value, 1, 1, 1) for key, value in values.items()}


def registered(*names: str) -> dict[str, Any]:
    return {KEYS.agent(name): registration(name) for name in names} | {
        KEYS.node(name): registration(name).node for name in names
    }


def test_nodes_stand_in_their_physical_order_with_numbers_as_numbers() -> None:
    cluster = look(registered("node-10", "node-2"))
    assert [node.name for node in cluster.machine] == ["node-2", "node-10"]


def test_a_lost_node_is_known_as_long_as_the_plan_names_it() -> None:
    records = registered("node-2", "node-10", "node-3") | {KEYS.plan(3): PLAN}
    for name in ("node-10", "node-3"):
        del records[KEYS.agent(name)]
    cluster = look(records)
    assert set(cluster.machine.by_name) == {"node-2", "node-10"}
    assert cluster.alive == {"node-2"}


def test_no_node_of_the_plan_is_lost_before_contact_has_settled() -> None:
    records = registered("node-2") | {KEYS.node("node-10"): registration("node-10").node, KEYS.plan(3): PLAN}
    assert look(records, settled=False).alive == {"node-2", "node-10"}
    assert look(records, settled=True).alive == {"node-2"}


def test_a_node_that_is_certainly_gone_is_lost_whatever_its_lease_says() -> None:
    records = registered("node-2", "node-10") | {KEYS.plan(3): PLAN}
    assert look(records, settled=False, gone=frozenset({"node-10"})).alive == {"node-2"}


def test_the_head_is_the_plan_with_the_highest_number() -> None:
    old = Plan(2, Mesh.flat(2), PLAN.seats)
    assert look({KEYS.plan(3): PLAN, KEYS.plan(2): old}).plan == PLAN


def test_exits_count_only_for_the_current_generation_and_from_the_ranks_own_node() -> None:
    died = Exit(signal=9)
    records = registered("node-2", "node-10") | {KEYS.plan(3): PLAN}
    records[KEYS.report("node-2")] = Report(3, {0: died, 1: died, 99: died})
    records[KEYS.report("node-10")] = Report(2, {1: died})
    assert look(records).exits == {0: died}


def test_bad_slots_count_whatever_the_generation() -> None:
    records = registered("node-2", "node-10") | {KEYS.report("node-2"): Report(1, {}, {1: "XID 79"})}
    assert look(records).bad == {Slot("node-2", 1): "XID 79"}


def test_a_drain_names_a_slot_or_a_whole_node_and_an_unknown_target_does_no_harm() -> None:
    records = registered("node-2", "node-10")
    for target in ("node-2/gpu-1", "node-10", "node-99", "node-2/gpu-7"):
        records[KEYS.drain(target)] = Drain(target, "drained")
    assert set(look(records).bad) == {Slot("node-2", 1), Slot("node-10", 0), Slot("node-10", 1)}


def test_a_node_for_which_nothing_changed_has_nothing_to_ack() -> None:
    records = registered("node-2", "node-10") | {
        KEYS.plan(3): PLAN,
        KEYS.rendezvous(3): Rendezvous("host", 1),
        KEYS.assign("node-2"): Assignment(2, 0, ()),
        KEYS.assign("node-10"): Assignment(3, 1, ()),
    }
    assert look(records).acked == {"node-2"}
    assert look(records | {KEYS.ack("node-10"): Ack(2)}).acked == {"node-2"}
    assert look(records | {KEYS.ack("node-10"): Ack(3)}).acked == {"node-2", "node-10"}


def test_the_node_of_rank_0_has_to_open_the_rendezvous_though_nothing_changed_for_it() -> None:
    records = registered("node-2", "node-10") | {
        KEYS.plan(3): PLAN,
        KEYS.assign("node-2"): Assignment(2, 0, ()),
        KEYS.assign("node-10"): Assignment(2, 1, ()),
    }
    assert look(records).acked == {"node-10"}
    assert look(records | {KEYS.rendezvous(3): Rendezvous("host", 1)}).acked == {"node-2", "node-10"}


def test_an_operators_stop_is_passed_on() -> None:
    assert look({KEYS.stop: Stop("stopped by SIGINT", 130)}).stop == ("stopped by SIGINT", 130)


@pytest.mark.parametrize("garbage", [b"", b"{", b'{"kind":"Plan"}', b"[" * 100_000, b" " * (MAX_BYTES + 1)])
def test_garbage_in_the_store_changes_nothing(garbage: bytes) -> None:
    records = registered("node-2", "node-10") | {KEYS.plan(3): PLAN, KEYS.ack("node-2"): Ack(3)}
    folders = (KEYS.agents, KEYS.nodes, KEYS.reports, KEYS.acks, KEYS.assigns, KEYS.drain(""))
    assert look(records | {folder + "zzz": garbage for folder in folders} | {KEYS.stop: garbage}) == look(records)


def test_garbage_is_told_once_and_again_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    items = stored({KEYS.report("node-2"): b"{"})
    view = View(KEYS, items)
    with caplog.at_level(logging.WARNING):
        for revision in (1, 1, 2):
            items[KEYS.report("node-2")] = replace(items[KEYS.report("node-2")], mod_revision=revision)
            assert not list(view.below(Report, KEYS.reports))
    assert len(caplog.records) == 2
    assert KEYS.report("node-2") in caplog.text


def test_a_job_cannot_go_on_from_a_plan_that_is_garbage() -> None:
    with pytest.raises(CodecError, match=r"plans/00000003: expected a JSON document"):
        look(registered("node-2") | {KEYS.plan(3): b"{"})


def test_a_record_under_the_name_of_another_node_does_not_count() -> None:
    records = registered("node-2", "node-10") | {KEYS.plan(3): PLAN}
    wrong = {KEYS.agent("node-99"): registration("node-2"), KEYS.node("node-99"): registration("node-2").node}
    assert look(records | wrong) == look(records)


def test_a_node_of_the_plan_is_known_even_when_its_record_is_garbage() -> None:
    cluster = look(registered("node-2") | {KEYS.node("node-10"): b"{", KEYS.plan(3): PLAN})
    assert cluster.machine.by_name["node-10"] == Node("node-10", 1)


def test_ranks_and_slots_that_do_not_exist_do_not_count() -> None:
    died = Exit(signal=9)
    records = registered("node-2", "node-10") | {KEYS.plan(3): PLAN}
    records[KEYS.report("node-2")] = Report(3, {-2: died, -99: died}, {-1: "XID 79", 2: "XID 79"})
    records[KEYS.report("node-99")] = Report(3, {}, {0: "XID 79"})
    assert look(records) == look(registered("node-2", "node-10") | {KEYS.plan(3): PLAN})
