from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlaunch.launcher.control import records
from tlaunch.launcher.core import codec
from tlaunch.launcher.core.codec import CodecError, decode, encode
from tlaunch.launcher.core.events import Exit, RankFailed
from tlaunch.launcher.core.plan import Plan, Result, Seat
from tlaunch.launcher.core.spec import JobSpec
from tlaunch.topology.mesh import Mesh
from tlaunch.topology.model import MAX_GPUS, Machine, Node, Slot

DOCUMENTS = (
    JobSpec,
    Plan,
    Machine,
    records.Registration,
    records.Leader,
    records.Generation,
    records.Assignment,
    records.Rendezvous,
    records.Ack,
    records.Report,
    records.Drain,
    records.Stop,
    records.KillRank,
    records.FailSlot,
    records.KillNode,
)

names = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF), min_size=1, max_size=12)
st.register_type_strategy(Slot, st.builds(Slot, names, st.integers(0, 100)))
st.register_type_strategy(
    Mesh,
    st.dictionaries(st.sampled_from(["dp", "pp", "tp", "ep"]), st.integers(1, 9), min_size=1).map(
        lambda dims: Mesh(tuple(dims.items()))
    ),
)
levels = st.none() | names
st.register_type_strategy(Node, st.builds(Node, names, st.integers(0, MAX_GPUS), levels, levels, levels))
st.register_type_strategy(
    Machine, st.lists(st.from_type(Node), unique_by=lambda node: node.name).map(lambda nodes: Machine(tuple(nodes)))
)
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))


@pytest.mark.parametrize("cls", DOCUMENTS, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_what_is_written_is_read_back_equal(cls: type, data: st.DataObject) -> None:
    obj = data.draw(st.from_type(cls))
    written = encode(obj)
    assert decode(cls, written, "a document") == obj
    assert encode(decode(cls, written, "a document")) == written


@given(command=st.from_type(records.KillRank) | st.from_type(records.FailSlot) | st.from_type(records.KillNode))
def test_one_of_several_classes_is_told_by_its_kind(command: records.NodeCommand) -> None:
    assert decode(records.NodeCommand, encode(command), "a command") == command


def test_a_document_is_what_people_would_write() -> None:
    plan = Plan(
        generation=2,
        mesh=Mesh.parse("dp=1,tp=1"),
        seats=(Seat(0, Slot("node-03", 2), since=2),),
        events=(RankFailed(0, Slot("node-03", 2), Exit(signal=9, time=1.5)),),
    )
    assert json.loads(encode(plan)) == {
        "kind": "Plan",
        "generation": 2,
        "mesh": "dp=1,tp=1",
        "seats": [{"rank": 0, "slot": "node-03/gpu-2", "since": 2}],
        "bad": [],
        "restarts": 0,
        "faults": [],
        "result": None,
        "events": [
            {
                "kind": "RankFailed",
                "rank": 0,
                "slot": "node-03/gpu-2",
                "exit": {
                    "code": None,
                    "signal": 9,
                    "message": None,
                    "traceback": None,
                    "output": None,
                    "host": "",
                    "time": 1.5,
                    "ran": 0.0,
                    "trial": False,
                    "hang": None,
                },
            }
        ],
        "decisions": [],
        "reasons": [],
    }


REPORT = '{"kind":"Report","generation":3,"exits":{"5":%s},"bad":{},"hung":{}}'
EXIT = (
    '{"code":1,"signal":null,"message":null,"traceback":null,"output":null,"host":"","time":0,"ran":1,'
    '"trial":false,"hang":null}'
)


@pytest.mark.parametrize(
    ("cls", "text", "place", "expected"),
    [
        (records.Ack, "", "", "a JSON document"),
        (records.Ack, "\udcff", "", "a JSON document"),
        (records.Ack, '{"kind":"Ack","generation":NaN}', "", "NaN is not a JSON number"),
        (records.Ack, '{"kind":"Ack","generation":1,"generation":2}', "", "a key stands twice"),
        (records.Ack, '{"kind":"Ack","generation":' + "9" * 5000 + "}", "", "a JSON document"),
        (records.Ack, "[" * 100_000, "", "a JSON document"),
        (records.Ack, "[]", "the top", "the kind 'Ack'"),
        (records.Ack, '{"generation":1}', "the top", "the kind 'Ack'"),
        (records.Ack, '{"kind":"Stop","reason":"","code":1}', "the top", "the kind 'Ack'"),
        (records.Ack, '{"kind":["Ack"],"generation":1}', "the top", "the kind 'Ack'"),
        (records.Ack, '{"kind":"Ack"}', "the top", "(Ack) with the key 'generation', found {"),
        (records.Ack, '{"kind":"Ack","generation":1,"more":2}', "the top", "only the keys of Ack, found 'more'"),
        (records.Ack, '{"kind":"Ack","generation":true}', "generation", "a whole number"),
        (records.Ack, '{"kind":"Ack","generation":1.0}', "generation", "a whole number"),
        (records.Ack, '{"kind":"Ack","generation":"1"}', "generation", "a whole number"),
        (records.Report, REPORT % "null", "exits.5", "an object (Exit)"),
        (records.Report, REPORT % EXIT.replace(":1", ':"1"'), "exits.5.code", "a whole number or null"),
        (records.Report, REPORT % EXIT.replace(":0", ":1e999"), "exits.5.time", "a finite number"),
        (records.Report, REPORT.replace('"5"', '"05"') % EXIT, "exits.05", "a whole number as text"),
        (records.Report, REPORT.replace('"5"', '"x"') % EXIT, "exits.x", "a whole number as text"),
        (records.Report, '{"kind":"Report","generation":3,"exits":[],"bad":{},"hung":{}}', "exits", "an object"),
    ],
)
def test_a_document_that_does_not_fit_is_one_clear_line(cls: type, text: str, place: str, expected: str) -> None:
    with pytest.raises(CodecError) as caught:
        decode(cls, text.encode(errors="surrogateescape"), "key /tlaunch/v1/j/x")
    line = str(caught.value)
    assert line.startswith(f"key /tlaunch/v1/j/x: {place and f'at {place}: '}expected ")
    assert expected in line
    assert "\n" not in line
    assert len(line) < 300


def change(key: str, value: object) -> bytes:
    plan = Plan(1, Mesh.flat(1), (Seat(0, Slot("a", 0), 1),), bad=((Slot("a", 1), "hot"),))
    return json.dumps({**json.loads(encode(plan)), key: value}).encode()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mesh", "dp=2,", "at mesh: expected a mesh such as 'dp=8,tp=4', found 'dp=2,'"),
        ("mesh", "dp = 2", "at mesh: expected a mesh such as 'dp=8,tp=4', found 'dp = 2'"),
        ("bad", [["a/1", "hot"]], "at bad[0][0]: expected a slot such as 'node-03/gpu-2', found 'a/1'"),
        (
            "bad",
            [["a/gpu-1"]],
            "at bad[0]: expected a list of a slot such as 'node-03/gpu-2', text, found ['a/gpu-1']",
        ),
        ("seats", {}, "at seats: expected a list of any length, each item an object (Seat), found {}"),
        (
            "result",
            {"code": 1, "reason": "x"},
            "at result: expected an object (Result) with the key 'traceback' or null, found {",
        ),
        ("events", [{"kind": "Exit"}], "at events[0]: expected an object with the kind 'RankFailed' or 'SlotFailed'"),
    ],
)
def test_the_place_of_a_misfit_is_named(key: str, value: object, message: str) -> None:
    with pytest.raises(CodecError) as caught:
        decode(Plan, change(key, value), "plan 1")
    assert str(caught.value).startswith(f"plan 1: {message}")


@given(st.binary(max_size=200))
def test_rubbish_never_raises_anything_else(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode(Plan, data, "plan 1")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(key=st.sampled_from(["generation", "mesh", "seats", "bad", "result", "events", "decisions"]), value=json_values)
def test_any_json_in_any_field_is_read_or_refused(key: str, value: object) -> None:
    try:
        plan = decode(Plan, change(key, value), "plan 1")
    except CodecError:
        return
    assert decode(Plan, encode(plan), "plan 1") == plan


def test_documents_are_limited_in_size() -> None:
    stop = records.Stop("x" * codec.MAX_BYTES, 1)
    with pytest.raises(CodecError, match=r"cannot write Stop: it takes \d+ bytes, at most 1048576 are allowed"):
        encode(stop)
    with pytest.raises(CodecError, match="here: 1048577 bytes, at most 1048576 are allowed"):
        decode(records.Stop, b" " * (codec.MAX_BYTES + 1), "here")


def wrong(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - that is the point
    """Fields of a type that a type checker would not let pass."""
    return fields


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (replace(records.Ack(1), **wrong(generation="1")), "at generation: expected a whole number, found '1'"),
        (Result(True, "done"), "at code: expected a whole number, found True"),
        (replace(records.Report(1), **wrong(exits={1: None})), "at exits.1: expected Exit, found None"),
        (Plan(1, Mesh(()), ()), "at mesh: expected a mesh such as 'dp=8,tp=4', found ''"),
        (replace(Plan(1, Mesh.flat(1), ()), **wrong(seats=[])), "at seats: expected a tuple of any length"),
    ],
)
def test_what_could_not_be_read_is_not_written(obj: object, message: str) -> None:
    with pytest.raises(CodecError) as caught:
        encode(obj)
    assert str(caught.value).startswith(f"cannot write {type(obj).__name__}: {message}")


def test_a_lone_surrogate_from_a_broken_log_survives() -> None:
    end = Exit(code=1, message=b"caf\xe9".decode(errors="surrogateescape"))
    report = records.Report(1, exits={0: end})
    assert decode(records.Report, encode(report), "a report") == report


def test_classes_without_json_are_refused_at_once() -> None:
    @dataclass
    class Odd:
        values: set[int]

    @dataclass
    class Kindly:
        kind: str

    with pytest.raises(TypeError, match="no JSON for set"):
        encode(Odd({1}))
    with pytest.raises(TypeError, match="by its kind"):
        encode(Kindly("x"))
    with pytest.raises(TypeError, match="by its kind"):
        encode(Slot("a", 1))


@dataclass(frozen=True)
class Keyed:
    by_slot: Mapping[Slot, bool]
    node: Node


def test_what_a_class_itself_refuses_is_refused_with_its_place() -> None:
    node = '{"name":"a","slots":1,"domain":null,"rack":null,"pod":null}'
    data = f'{{"kind":"Machine","nodes":[{node},{node}]}}'.encode()
    with pytest.raises(CodecError, match=r"^x: at the top: expected an object \(Machine\) .*node a stands twice"):
        decode(Machine, data, "x")


def test_mappings_may_have_slots_as_keys() -> None:
    keyed = Keyed({Slot("a", 1): True}, Node("a", 2, rack="r"))
    assert json.loads(encode(keyed))["by_slot"] == {"a/gpu-1": True}
    assert decode(Keyed, encode(keyed), "x") == keyed
