"""Trainings side by side, on Ray: the cores of one machine, shares of a GPU, or a Ray cluster (RAY_ADDRESS).

Ray schedules, and repeats what a killed worker did; the trainings continue from their checkpoints and leave their results in the
comparison's folder, which every machine of a cluster must see at the same path. Knows nothing about methods or results: it is
told which trainings there are, and which must not begin before another has ended.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mmedge.errors import MmedgeError
from mmedge.machine import usable_cores
from mmedge.recipe import Recipe
from mmedge.storage import Json

PATIENCE = 10.0  # seconds for a cluster to answer
REPEATS = 20  # how often a training is begun again whose worker was killed


@dataclass(frozen=True)
class TrainingJob:
    """One training.

    Attributes:
        place: Its number in the comparison's plan.
        name: What it is called in messages.
        after: The number of the training that must have ended before, since it trains a stage that both share; None without one.
    """

    place: int
    name: str
    after: int | None = None


def train_side_by_side(recipe: Recipe, out: Path, jobs: Sequence[TrainingJob], workers: int) -> Iterator[int]:
    """Train on Ray's workers, and yield the number of each training that has ended, in the order in which they do.

    Args:
        recipe: The comparison's.
        out: Its folder.
        jobs: What is to be trained; one that others wait for stands before them.
        workers: How many trainings run at the same time.

    Raises:
        MmedgeError: Ray cannot be started, a training refuses, or its worker was killed again and again.
    """
    # set before Ray is imported: it sends nothing anywhere, and its workers have the driver's own packages
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    ray: Any = import_module("ray")
    threads = recipe.training.threads or max(1, usable_cores() // workers)
    values = recipe.model_copy(update={"training": recipe.training.model_copy(update={"threads": threads})}).model_dump_json()
    try:
        _start(ray, workers)
        train = ray.remote(max_retries=REPEATS, num_cpus=1, num_gpus=_gpu_share(ray, recipe, workers))(_train)
        waiting, running, refs = list(jobs), dict[Any, TrainingJob](), dict[int, Any]()
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                before = None if job.after is None else refs[job.after]
                refs[job.place] = train.remote(values, str(out.resolve()), job.place, before)
                running[refs[job.place]] = job
            (ended,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(ended)
            _raise_refusal(ray, ended, job)
            yield job.place
    finally:
        ray.shutdown()


def _start(ray: Any, workers: int) -> None:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _reach(address)
    cluster: Json = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(**cluster, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = f"to the Ray cluster at {address}" if address else "to Ray's own processes on this machine"
        raise _no_connection(where, error) from error


def _reach(address: str) -> None:
    """Refuse an address where nobody listens; Ray itself would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # such as `auto`
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise _no_connection(f"to the Ray cluster at {address}", error) from error


def _no_connection(where: str, error: Exception) -> MmedgeError:
    return MmedgeError(f"cannot connect {where}: {str(error).splitlines()[0]}", "train one after the other: leave --workers out")


def _gpu_share(ray: Any, recipe: Recipe, workers: int) -> float:
    """Return the share of a GPU that each training takes: those of this cluster are shared out among the workers."""
    gpus = 0.0 if recipe.training.device == "cpu" else float(ray.cluster_resources().get("GPU", 0))
    return min(1.0, gpus / workers)


def _train(values: str, out: str, place: int, after: Json | None) -> Json:
    """Train one of a comparison's trainings; runs in a worker. What the user can fix is returned, not raised."""
    from mmedge.distill.ablation import train_one

    if after:
        return after  # the training before was refused, and so is this one
    try:
        train_one(Recipe.model_validate_json(values), Path(out), place)
    except MmedgeError as error:
        return {"what": error.what, "hint": error.hint}
    return {}


def _raise_refusal(ray: Any, ended: Any, job: TrainingJob) -> None:
    try:
        refused: Json = ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from None
    except ray.exceptions.RayError as error:
        why = "there was too little memory" if isinstance(error, ray.exceptions.OutOfMemoryError) else "its worker was killed"
        raise MmedgeError(
            f"{job.name}: given up after {REPEATS} repetitions: {why}", "use fewer --workers, and run the same command again"
        ) from error
    if refused:
        raise MmedgeError(refused["what"], refused["hint"])
