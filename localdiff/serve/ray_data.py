"""Batches on a Ray cluster: Ray Data hands blocks of requests to workers, each with a hub of its own.

The driver reads and writes the files, so only it needs them; a model's file has to be at the same path, or a
downloaded name, on every machine. Answers come back block by block, and those of finished blocks are what a stopped run
keeps. Not here: starting clusters.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from ..errors import EngineError, LocaldiffError
from . import batch
from .opening import Opening

Tell = Callable[[dict[str, Any]], None]


class _Worker:
    """Answers blocks of requests, in a process of the cluster."""

    def __init__(self, opening: Opening) -> None:
        self._open = ExitStack()
        self._hub = self._open.enter_context(opening.hub())
        self._most = batch.under_way(opening.parallel)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        answers: list[str] = []
        asked = [batch.Asked(**json.loads(each)) for each in block["request"]]
        batch.answer(self._hub, asked, self._most, lambda answer: answers.append(json.dumps(answer)))
        return {"answer": answers}


def answer(address: str, workers: int | None, opening: Opening, asked: Iterable[batch.Asked], tell: Tell) -> None:
    """Answer requests on the cluster at `address`, "local" for one on this machine; workers: None = one per machine.

    raises   LocaldiffError where there is no Ray or no cluster, EngineError where the cluster fails
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to others unless asked for
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError
    except ModuleNotFoundError as error:
        raise LocaldiffError(
            f"--ray needs {error.name}, which is not installed; pip install 'localdiff[ray]'"
        ) from None
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise LocaldiffError(f"--ray {address}: no cluster answers there ({error}); start one or give local") from None
    try:
        _run(ray, workers, opening, asked, tell)
    except RayError as error:
        why = str(error).strip().splitlines()[-1]
        raise EngineError(f"the cluster at {address} failed: {why}; run again to go on") from error
    finally:
        ray.shutdown()


def _run(ray: Any, workers: int | None, opening: Opening, asked: Iterable[batch.Asked], tell: Tell) -> None:
    machines = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]]
    # a worker uses the cores of its machine unless --threads says how many
    cores = opening.loading.get("threads") or (min(machines) if workers is None else 1)
    count = workers or len(machines)
    size = batch.under_way(opening.parallel)
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one already
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"request": json.dumps(dataclasses.asdict(each))} for each in asked]
    blocks = min(len(items), max(count, -(-len(items) // size)))
    dataset = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        _Worker,
        fn_constructor_args=(opening,),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=cores,
    )
    for row in dataset.iter_rows():
        tell(json.loads(row["answer"]))
