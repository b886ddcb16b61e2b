"""Whether a GPU can be used, and the errors that the driver reports."""

from __future__ import annotations

import pytest

from tests.topology.discover.standin import CLUSTER, Driver, gpu


def health(driver: Driver) -> list[list[object]]:
    code = """
        from tlaunch.topology.discover.health import health
        print(json.dumps([[h.index, h.ok, h.reason, h.uncorrected] for h in health()]))
    """
    answer: list[list[object]] = driver.ask(code)
    return answer


def test_sound_gpus(driver: Driver) -> None:
    driver.be(gpu(0), gpu(1, ecc=-1, rows=0), gpu(2, uncorrected=3))
    # Errors alone are no fault where the GPU replaces the rows that they are in.
    assert health(driver) == [[0, True, None, 0], [1, True, None, None], [2, True, None, 3]]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"lost": 1}, "it has fallen off the bus; the node needs a reboot"),
        ({"gone": 1}, "it has fallen off the bus; the node needs a reboot"),
        ({"pending": 1}, "broken memory rows wait for a reset to be replaced"),
        ({"pending": 1, "failed": 1}, "broken memory rows that could not be replaced"),
        ({"rows": 0, "uncorrected": 2}, "2 memory errors that ECC could not correct"),
        ({"action": 1}, "the driver asks for a reset of the GPU"),
        ({"action": 2}, "the driver asks for a reboot of the node"),
        ({"action": 42}, "the driver asks for recovery action 42"),
        ({"cluster": CLUSTER, "state": 3, "summary": 2}, "its NVLink fabric is unhealthy"),
        ({"cluster": CLUSTER, "state": 3, "health": 0x10}, "an NVLink route of it is unhealthy"),
    ],
)
def test_what_makes_a_gpu_unusable(driver: Driver, settings: dict[str, object], reason: str) -> None:
    driver.be(gpu(0), gpu(1, **settings))
    assert health(driver)[0] == [0, True, None, 0]
    assert health(driver)[1][:3] == [1, False, reason]


def test_health_of_a_machine_without_a_driver(driver: Driver) -> None:
    driver.be("init=9")
    code = """
        from tlaunch.topology.discover.health import health
        from tlaunch.topology.discover.library import NoDriver
        try:
            health()
        except NoDriver as error:
            print(json.dumps(str(error)))
    """
    assert driver.ask(code) == "no NVIDIA driver"


def heard(driver: Driver) -> list[object]:
    code = """
        from tlaunch.topology.discover.health import xids
        with xids() as watch:
            first, second = watch.wait(5), watch.wait(0.01)
        print(json.dumps([first and [first.gpu, first.number, first.hardware, str(first)], second]))
    """
    answer: list[object] = driver.ask(code)
    return answer


def test_an_xid_is_heard_once(driver: Driver) -> None:
    driver.be(gpu(0), gpu(1), "xid=79 gpu=1")
    assert heard(driver) == [["GPU-00000001", 79, True, "XID 79 on GPU-00000001"], None]


def test_the_xid_of_a_faulty_program_is_not_the_hardware(driver: Driver) -> None:
    driver.be(gpu(0), "xid=31 gpu=0")
    assert heard(driver) == [["GPU-00000000", 31, False, "XID 31 on GPU-00000000"], None]


def test_a_gpu_that_is_lost_while_we_listen(driver: Driver) -> None:
    driver.be(gpu(0), "xid=79")
    assert heard(driver) == [[None, 79, True, "XID 79 on a GPU that does not answer"], None]


def test_nobody_to_listen_to(driver: Driver) -> None:
    driver.be(gpu(0, lost=1))
    code = """
        from tlaunch.topology.discover.health import xids
        from tlaunch.topology.discover.library import DriverError
        try:
            with xids():
                pass
        except DriverError as error:
            print(json.dumps(str(error)))
    """
    assert driver.ask(code) == "no GPU of this node reports XID errors"
