"""A Ray cluster of two workers on this machine: a batch over Ray Data, and replicas behind Ray Serve."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import ROOT, STORIES

import localdiff
from localdiff.cli import main
from localdiff.errors import OptionError

ray = pytest.importorskip("ray", reason="ray is not installed, so nothing ran on a cluster; it is the extra [ray]")
KEY = "a key of some length"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = str(ROOT)  # for the workers
    from ray.cluster_utils import Cluster

    one = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=one)
    made.add_node(**{name: one[name] for name in ("num_cpus", "object_store_memory")})
    yield made
    made.shutdown()


def test_a_batch_runs_on_the_cluster(cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"model": STORIES, "prompt": "The cat", "max_tokens": 8, "steps": 4}
    lines = [
        {"custom_id": str(seed), "method": "POST", "url": "/v1/completions", "body": {**body, "seed": seed}}
        for seed in range(10)
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"custom_id": "bad"}]))
    command = ["batch", str(source), str(target), "--ray", cluster.address, "--parallel", "1", "--memory", "200"]
    assert main(command) == 1
    assert "localdiff: 1 of 11 requests failed" in capsys.readouterr().err
    got = {each["custom_id"]: each for each in map(json.loads, target.read_text().splitlines())}
    assert (len(got), got["bad"]["response"]) == (11, None)
    with localdiff.load(threads=1) as model:
        for seed in range(10):
            text = model.generate("The cat", max_new_tokens=8, steps=4, seed=seed).text
            assert got[str(seed)]["response"]["body"]["choices"][0]["text"] == text
    target.write_text("".join(target.read_text().splitlines(keepends=True)[:7]) + '{"id": "batch_r')
    assert main(command) == 1
    assert {json.loads(line)["custom_id"] for line in target.read_text().splitlines()} == set(got)


def test_replicas_answer_as_the_server_does(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    from localdiff.serve.ray_app import Settings, build

    monkeypatch.delenv("LOCALDIFF_API_KEY", raising=False)
    with pytest.raises(OptionError, match="needs a key"):
        build(Settings())
    assert build.__annotations__["settings"] is Settings  # by which `serve run` reads its words
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(Settings(api_key=KEY, min_replicas=2, max_replicas=2, memory=200)))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert client.get("/health").json()["models"][0]["id"] == STORIES
            assert client.get("/v1/models").status_code == 401
            client.headers["Authorization"] = f"Bearer {KEY}"
            body = {"prompt": "The cat", "max_tokens": 8, "steps": 4, "seed": 1}
            whole = client.post("/v1/completions", json=body).json()
            with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
                data = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
            assert client.post("/v1/completions", json={**body, "steps": 0}).status_code == 400
        with localdiff.load(threads=1) as model:
            text = model.generate("The cat", max_new_tokens=8, steps=4, seed=1).text
        assert whole["choices"][0]["text"] == text
        assert "".join(json.loads(each)["choices"][0]["text"] for each in data[:-1]) == text
        status = serve.status().applications["default"].deployments["localdiff"]
        assert status.replica_states == {"RUNNING": 2}
    finally:
        serve.shutdown()
        ray.shutdown()
