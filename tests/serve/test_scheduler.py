"""The queue: bounded, fair between clients, and nobody is answered who has gone."""

from __future__ import annotations

import threading
import weakref

import pytest

from mmedge.serve.metrics import Metrics
from mmedge.serve.scheduler import Full, GivenUp, Job, Scheduler


def test_clients_take_turns() -> None:
    scheduler, gate, order = Scheduler(1, 10), threading.Event(), list[str]()

    def work(name: str) -> Job:
        def run(_: Job) -> None:
            gate.wait(10)
            order.append(name)

        return scheduler.submit(name[0], run)

    jobs = [work(name) for name in ("a1", "a2", "a3", "a4", "b1", "c1")]
    gate.set()
    for job in jobs:
        job.done.result(10)
    assert order.index("b1") < 4 and order.index("c1") < 5 and order.index("a4") == 5
    scheduler.stop()


def test_what_a_job_held_is_freed_when_it_is_done() -> None:
    """It may be the last that holds a bundle which was replaced, in the thread that nobody needs for a while."""

    class Bundle:
        pass

    scheduler, bundle = Scheduler(2, 10), Bundle()
    held, freed = weakref.ref(bundle), threading.Event()
    weakref.finalize(bundle, freed.set)
    job = scheduler.submit("a", lambda _, bundle=bundle: id(bundle))  # type: ignore[misc]
    job.done.result(10)
    del bundle, job
    assert freed.wait(10) and held() is None
    scheduler.stop()


def test_the_queue_is_bounded_and_what_is_given_up_never_begins() -> None:
    scheduler, gate, began = Scheduler(1, 2), threading.Event(), threading.Event()

    def blocking(_: Job) -> None:
        began.set()
        gate.wait(10)

    first = scheduler.submit("a", blocking)
    began.wait(10)
    ran: list[str] = []
    second, third = (scheduler.submit("a", lambda _, name=name: ran.append(name)) for name in "xy")  # type: ignore[misc]
    with pytest.raises(Full):
        scheduler.submit("b", blocking)
    second.give_up()
    gate.set()
    first.done.result(10)
    third.done.result(10)
    assert ran == ["y"]
    scheduler.stop()


def test_a_job_that_is_given_up_learns_it_at_its_next_token() -> None:
    job = Job("a", lambda _: None)
    job.check()
    job.give_up()
    with pytest.raises(GivenUp):
        job.check()


def test_metrics_are_in_prometheus_words() -> None:
    metrics = Metrics()
    metrics.count("mmedge_requests_total", route="/", status="200")
    metrics.count("mmedge_requests_total", 2, route="/", status="200")
    metrics.observe("mmedge_confidence", 0.85, model='a"b')
    lines = metrics.text({"mmedge_running": ("Now.", 3.0)}).splitlines()
    assert 'mmedge_requests_total{route="/",status="200"} 3' in lines and "mmedge_running 3" in lines
    assert 'mmedge_confidence_bucket{model="a\\"b",le="0.8"} 0' in lines
    assert 'mmedge_confidence_bucket{model="a\\"b",le="0.9"} 1' in lines
    assert 'mmedge_confidence_bucket{model="a\\"b",le="+Inf"} 1' in lines
