"""The invariants of design section 6 once more, stated apart from the code that keeps them."""

from __future__ import annotations

from dataclasses import replace

from tlaunch.launcher.core.cluster import Cluster
from tlaunch.launcher.core.plan import Plan
from tlaunch.topology.model import REACH, distance


def check_next(before: Cluster, plan: Plan) -> None:
    """State the invariants of design section 6, for one plan after another."""
    spec, last = before.spec, before.plan
    if plan.result is not None:
        assert plan.seats == ()
        return
    slots = [seat.slot for seat in plan.seats]
    assert [seat.rank for seat in plan.seats] == list(range(plan.world_size))
    assert plan.world_size == plan.mesh.size
    assert len(set(slots)) == len(slots), "a slot has at most one role"
    assert {seat.since for seat in plan.seats} == {plan.generation}, "every rank of a plain script starts again"
    for slot in slots:
        stays = last is not None and slot in last.by_slot and slot in before.drained
        assert slot.node in before.alive
        assert slot not in dict(plan.bad)
        assert slot not in before.bad or stays
    if last is None:
        assert plan.mesh == spec.mesh
        return
    assert 0 <= plan.restarts <= spec.max_restarts
    if len(plan.bad) == len(last.bad):
        assert plan.restarts >= last.restarts, "only a slot that is given up makes up for failures"
    assert set(last.bad) <= set(plan.bad)
    if plan.mesh == last.mesh:
        check_moves(before, last, plan)
    elif plan.mesh.replicas > last.mesh.replicas:
        check_grown(before, last, plan)
    else:
        check_shrunk(before, last, plan)


def check_moves(before: Cluster, last: Plan, plan: Plan) -> None:
    bad = dict(plan.bad)
    crashed = {rank for rank, ended in before.exits.items() if not ended.ok}
    for old, new in zip(last.seats, plan.seats, strict=True):
        if old.slot == new.slot:
            continue
        members = last.mesh.group_of(old.rank) if last.mesh.dims[-1][0] != "dp" else (old.rank,)
        affected = [
            member
            for member in members
            if (slot := last.seats[member].slot).node not in before.alive or slot in bad or slot in before.bad
        ]
        assert affected or old.rank in crashed, "a rank that was not affected keeps its number and slot"
        lost = old.rank in affected
        if not lost and old.rank not in crashed:
            homes = {before.machine.node_of(plan.seats[member].slot).domain_key for member in members}
            assert len(homes) == 1, "a healthy rank moves only with its group, into one NVLink domain"
            assert all(plan.seats[member].slot != last.seats[member].slot for member in members)
        assert new.slot not in last.by_slot or lost or crashed
        here, there = before.machine.node_of(old.slot), before.machine.node_of(new.slot)
        assert distance(here, there) <= REACH[before.spec.swap_scope], "no spare outside the scope is used"


def check_grown(before: Cluster, last: Plan, plan: Plan) -> None:
    assert plan.mesh == last.mesh.resized(plan.mesh.replicas), "whole replicas only"
    assert plan.mesh.replicas <= before.spec.mesh.replicas, "no more than the job began with"
    assert not [ended for ended in before.exits.values() if ended.ok], "a job that is finishing does not grow"
    old = {
        was: plan.seats[now]
        for replica in range(last.mesh.replicas)
        for was, now in zip(last.mesh.ranks_of(replica), plan.mesh.ranks_of(replica), strict=True)
    }
    staying = replace(
        plan, mesh=last.mesh, seats=tuple(replace(old[rank], rank=rank) for rank in range(last.world_size))
    )
    check_moves(before, last, staying)


def check_shrunk(before: Cluster, last: Plan, plan: Plan) -> None:
    assert plan.mesh == last.mesh.resized(plan.mesh.replicas), "whole replicas only"
    assert 1 <= plan.mesh.replicas < last.mesh.replicas
    assert plan.world_size >= before.spec.min_world
    bad = dict(plan.bad)
    unharmed = [
        replica
        for replica in range(last.mesh.replicas)
        if all(
            last.seats[rank].slot.node in before.alive
            and last.seats[rank].slot not in bad
            and last.seats[rank].slot not in before.bad
            and rank not in before.exits
            for rank in last.mesh.ranks_of(replica)
        )
    ]
    now = set(plan.by_slot)
    kept = [replica for replica in unharmed if {last.seats[rank].slot for rank in last.mesh.ranks_of(replica)} <= now]
    gone = last.mesh.replicas - plan.mesh.replicas
    assert len(kept) >= len(unharmed) - gone, "replicas that stay keep their slots"
