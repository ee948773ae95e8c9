"""The server over HTTP: what it answers, streams and refuses, against the Python API. Not here: who is let in
(test_serve_guard.py)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import CHATTY, ROOT, STORIES

import localdiff
from localdiff.model import Model


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as made:
        yield made


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    answer = client.post(path, json={"model": STORIES, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client: httpx.Client, path: str, **body: Any) -> list[tuple[str, Any]]:
    """(event, data) of a stream; the data are JSON but for [DONE]."""
    found = []
    with client.stream("POST", path, json={"model": STORIES, "stream": True, **body}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for block in "".join(answer.iter_text()).replace("\r\n", "\n").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if fields:
                data = fields["data"]
                found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


# ---- answers ----


def test_a_completion_is_what_python_gives(client: httpx.Client, stories: Model) -> None:
    asked = {"steps": 12, "seed": 3, "temperature": 0.8, "top_k": 20}
    out = stories.generate("Once upon a time", max_new_tokens=24, **asked)
    answer = post(client, "/v1/completions", prompt="Once upon a time", max_tokens=24, **asked)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["index"]) == (out.text, out.stop_reason, 0)
    made = len(out.tokens)
    assert answer["usage"] == {
        "prompt_tokens": out.prompt_tokens, "completion_tokens": made, "total_tokens": out.prompt_tokens + made,
    }  # fmt: skip
    assert answer["timings"]["nfe"] == out.nfe
    assert choice["timings"]["decoder"] == out.decoder
    assert choice["timings"]["seed"] == 3
    assert (answer["object"], answer["model"]) == ("text_completion", STORIES)


def test_many_prompts_are_many_choices(client: httpx.Client, stories: Model) -> None:
    prompts = ["The cat", "The dog", "A bird"]
    answer = post(client, "/v1/completions", prompt=prompts, max_tokens=9, seed=1, steps=4)
    outs = stories.generate(prompts, max_new_tokens=9, seed=1, steps=4)
    assert [choice["text"] for choice in answer["choices"]] == [out.text for out in outs]
    ids = [stories.tokenize(prompt) for prompt in prompts]
    assert post(client, "/v1/completions", prompt=ids, max_tokens=9, seed=1, steps=4)["choices"][2]["text"] == (
        outs[2].text
    )


@pytest.mark.parametrize("decoder", ["llada", "topk", "rdm", "threshold"])
def test_a_stream_adds_up_to_the_text(client: httpx.Client, stories: Model, decoder: str) -> None:
    out = stories.generate("One day", max_new_tokens=40, seed=5, decoder=decoder)
    body = {"prompt": "One day", "max_tokens": 40, "seed": 5, "decoder": decoder, "alternatives": 2}
    found = events(client, "/v1/completions", **body, stream_options={"canvas": True, "include_usage": True})
    assert found[-1] == ("", "[DONE]")
    chunks = [data for event, data in found[:-1] if not event]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"]) == out.text
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        out.stop_reason
    ]
    assert chunks[-1]["usage"]["completion_tokens"] == len(out.tokens)
    canvases = [data for event, data in found if event == "canvas"]
    assert [each["step"] for each in canvases] == list(range(1, out.nfe + 1))
    cells = canvases[-1]["cells"]
    assert "".join(cell[1] for cell in cells) == out.text
    assert {cell[0] for cell in cells} <= {"fresh", "settled"}
    assert all(0 <= cell[2] <= 1 for cell in cells if cell[2] is not None)
    assert {len(cell[3]) for cell in cells} == {2}
    plain = events(client, "/v1/completions", **body)
    assert not [event for event, _ in plain if event]


def test_a_stream_of_many_texts_keeps_them_apart(client: httpx.Client, stories: Model) -> None:
    prompts = ["The cat", "The dog"]
    found = events(client, "/v1/completions", prompt=prompts, max_tokens=12, seed=1)
    texts = ["", ""]
    for _, data in found[:-1]:
        for choice in data["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [out.text for out in stories.generate(prompts, max_new_tokens=12, seed=1)]


def test_token_controls_reach_the_engine(client: httpx.Client, stories: Model) -> None:
    controls = {"stop": "."}
    biases = {stories.tokenize("Once upon")[0]: 5.0}
    outs = stories.generate(
        "The cat", max_new_tokens=20, seed=7, samples=3, alternatives=3, logit_bias=biases, guidance=0.5, **controls
    )
    body = {"prompt": "The cat", "max_tokens": 20, "seed": 7, "n": 3, "logprobs": 3, "guidance": 0.5, **controls,
            "logit_bias": {str(token): bias for token, bias in biases.items()}}  # fmt: skip
    answer = post(client, "/v1/completions", **body)
    assert [choice["text"] for choice in answer["choices"]] == [out.text for out in outs]
    for choice, out in zip(answer["choices"], outs, strict=True):
        logs = choice["logprobs"]
        assert logs["tokens"] == [detail.text for detail in out.token_details]
        assert all(log <= 0 for log in logs["token_logprobs"])
        assert "".join(logs["tokens"]).startswith(out.text)
    texts = ["", "", ""]
    for _, data in events(client, "/v1/completions", **body)[:-1]:
        for choice in data["choices"]:
            texts[choice["index"]] += choice["text"]
            assert (choice["logprobs"] is None) == (choice["finish_reason"] is None)
    assert texts == [out.text for out in outs]


def test_chat_goes_through_the_template(client: httpx.Client) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
    ]
    body = {"model": CHATTY, "messages": messages, "max_completion_tokens": 6, "seed": 1}
    answer = post(client, "/v1/chat/completions", **body)
    message = answer["choices"][0]["message"]
    assert message["role"] == "assistant"
    found = events(client, "/v1/chat/completions", **body)
    deltas = [data["choices"][0]["delta"] for _, data in found[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]


def test_infill_by_text_parts_and_suffix(client: httpx.Client, stories: Model) -> None:
    parts = ["Once upon a ", localdiff.Hole(3), " the cat and ", localdiff.Hole(), "."]
    out = stories.infill(parts, seed=4)
    body = {"text": "Once upon a [[3]] the cat and [[]].", "seed": 4}
    answer = post(client, "/v1/infill", **body)
    assert (answer["text"], answer["holes"]) == (out.text, out.holes)
    in_parts = ["Once upon a ", {"hole": 3}, " the cat and ", {"hole": None}, "."]
    assert post(client, "/v1/infill", parts=in_parts, seed=4)["text"] == out.text
    found = events(client, "/v1/infill", **body, stream_options={"canvas": True})
    assert "".join(data["text"] for event, data in found[:-1] if not event) == out.text
    assert found[-2][1]["holes"] == out.holes
    suffixed = post(client, "/v1/completions", prompt="Once upon a ", suffix=" the cat.", max_tokens=3, seed=4)
    assert (
        suffixed["choices"][0]["text"]
        == stories.infill(["Once upon a ", localdiff.Hole(3), " the cat."], seed=4).holes[0]
    )


def test_tokens_and_back(client: httpx.Client, stories: Model) -> None:
    tokens = post(client, "/tokenize", content="The cat sat. <|endoftext|>")["tokens"]
    assert tokens == stories.tokenize("The cat sat. <|endoftext|>")
    assert post(client, "/detokenize", tokens=tokens)["content"] == stories.detokenize(tokens)


def test_ollama_shapes(client: httpx.Client, stories: Model) -> None:
    out = stories.generate("Once", max_new_tokens=12, seed=2, steps=6)
    options = {"num_predict": 12, "seed": 2, "steps": 6, "num_ctx": 2048}
    asked = {"prompt": "Once", "options": options, "model": f"{STORIES}:latest"}
    answer = post(client, "/api/generate", **asked, stream=False)
    assert (answer["response"], answer["done"], answer["eval_count"]) == (out.text, True, len(out.tokens))
    lines = client.post("/api/generate", json=asked).text.splitlines()
    pieces = [json.loads(line) for line in lines]
    assert "".join(piece["response"] for piece in pieces) == out.text
    assert [piece["done"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    names = [model["name"] for model in client.get("/api/tags").json()["models"]]
    assert names == [STORIES, CHATTY]
    shown = post(client, "/api/show", model=CHATTY)
    assert shown["model_info"]["general.architecture"] == "llama"
    assert str(ROOT) not in json.dumps(shown)
    refused = client.post("/api/generate", json={**asked, "options": {"mirostat": 2}})
    assert (refused.status_code, refused.json()) == (400, {"error": "mirostat is not offered here; leave it out"})


def test_models_health_and_metrics(client: httpx.Client) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [STORIES, CHATTY]
    assert client.get(f"/v1/models/{CHATTY}").json()["chat"] is True
    health = client.get("/health").json()
    assert (health["status"], health["models"][0]) == ("ok", {"id": STORIES, "live": 0, "waiting": 0})
    metrics = client.get("/metrics").text
    assert re.search(r'localdiff_tokens_total\{model="localdiff-stories"\} [1-9]', metrics)
    assert 'localdiff_requests_total{path="/v1/completions",status="200"}' in metrics


# ---- refusals ----


def test_a_body_of_curl_is_json_and_another_type_is_named(client: httpx.Client) -> None:
    content = json.dumps({"model": STORIES, "prompt": "One", "max_tokens": 2})
    form = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d says where nobody says otherwise
    assert client.post("/v1/completions", content=content, headers=form).status_code == 200
    foreign = client.post("/v1/completions", content=content, headers=form | {"origin": "http://evil.example"})
    assert foreign.status_code == 403
    posted = client.post("/v1/completions", content="%7B%22prompt%22%3A+%22One%22%7D=", headers=form)  # a page's form
    assert posted.status_code == 400
    plain = client.post("/v1/completions", content=content, headers={"content-type": "text/plain"})
    assert "the Content-Type is text/plain, expected application/json" in plain.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "x", "echo": True}, "echo"),
        ("/v1/completions", {"prompt": "x", "stepz": 3}, "stepz"),
        ("/v1/completions", {"prompt": "x", "frequency_penalty": 0.5}, "frequency_penalty"),
        ("/v1/completions", {"prompt": "x", "temperature": -1}, "temperature"),
        ("/v1/completions", {"prompt": "x", "temperature": 1e999}, "temperature"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": "8"}, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "seed": 2**64}, "seed"),
        ("/v1/completions", {"prompt": "x", "decoder": "none"}, "decoder"),
        ("/v1/completions", {"prompt": ["x"] * 65, "max_tokens": 1}, "prompt"),
        ("/v1/completions", {"prompt": 3}, "prompt"),
        ("/v1/completions", {"prompt": ["x", "y"], "n": 33}, "prompt"),
        ("/v1/completions", {"prompt": "x", "n": 65}, "n"),
        ("/v1/completions", {"prompt": "x", "n": 0}, "n"),
        ("/v1/completions", {"prompt": "x", "stop": [""]}, None),
        ("/v1/completions", {"prompt": "x", "logit_bias": {"99999999": 1}}, None),
        ("/v1/completions", {"prompt": "x", "samples": 2}, "samples"),
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": [10**9], "max_tokens": 4}, None),
        ("/v1/completions", {"prompt": "x", "max_tokens": 10**9}, None),
        ("/v1/completions", {"prompt": "\ud800", "max_tokens": 4}, None),
        ("/v1/completions", {"prompt": "x", "stream_options": {"canvas": True}}, "stream_options"),
        ("/v1/completions", {"prompt": "x", "stream": True, "stream_options": {"canvass": True}}, "stream_options"),
        ("/v1/completions", {"prompt": "x", "report_drift": True}, "report_drift"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"model": CHATTY, "messages": [{"role": "user", "content": "x"}],
                                  "max_completion_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", {"model": CHATTY, "messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ("/v1/chat/completions", {"model": CHATTY, "messages": [{"role": "user", "content": "x"}],
                                  "tools": [{"type": "function", "function": {"name": "f"}}]}, "tool_choice"),
        ("/v1/completions", {"prompt": "x", "tools": [{"type": "function"}]}, "tools"),
        ("/v1/infill", {"text": "no hole"}, None),
        ("/v1/infill", {"text": "a [[2]]", "parts": ["a"]}, "text"),
        ("/v1/infill", {"parts": [{"hole": 0}]}, "parts"),
        ("/v1/infill", {"text": "a [[999999999]]"}, None),
        ("/tokenize", {"content": 3}, "content"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(client: httpx.Client, path: str, body: Any, param: Any) -> None:
    content = json.dumps({"model": STORIES, **body})
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "/" not in error["message"].replace("localdiff-stories", "")
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/completions", b"{", 400),
        ("POST", "/v1/completions", b"[" * 100_000, 400),
        ("POST", "/v1/completions", b'{"prompt": "x", "temperature": NaN, "max_tokens": 4}', 400),
        ("POST", "/v1/completions", b"\xff\xfe", 400),
        ("POST", "/v1/completions", b'{"prompt": "' + b"x" * (1 << 20) + b'"}', 413),
        ("GET", "/v1/completions", b"", 405),
        ("GET", "/nowhere", b"", 404),
        ("GET", "/static/../app.py", b"", 404),
        ("GET", "/static/%2e%2e/app.py", b"", 404),
        ("POST", "/v1/completions", b'{"model": "other", "prompt": "x"}', 404),
        ("POST", "/api/generate", b'{"model": "other", "prompt": "x"}', 404),
    ],
)
def test_what_is_no_request_is_refused(
    client: httpx.Client, method: str, path: str, content: bytes, status: int
) -> None:
    answer = client.request(method, path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    message = error if path.startswith("/api/") else error["message"]
    assert str(ROOT) not in message
    assert len(message) < 300


def cancelled(client: httpx.Client) -> float:
    found = re.search(
        r'localdiff_texts_total\{model="localdiff-stories",reason="cancelled"\} (\S+)', client.get("/metrics").text
    )
    return float(found[1]) if found else 0.0


def test_a_client_that_leaves_is_forgotten(client: httpx.Client) -> None:
    before = cancelled(client)
    body = {"model": STORIES, "prompt": ["Once"] * 12, "max_tokens": 240, "steps": 240, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        reading = answer.iter_text()  # given up, it would hang up
        next(reading)
        assert client.get("/health").json()["models"][0]["live"] == 12
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json={**body, "stream": False}, timeout=0.2)
    until = time.monotonic() + 20
    while client.get("/health").json()["models"][0]["live"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert cancelled(client) == before + 24


def test_a_full_queue_is_429(client: httpx.Client) -> None:
    body = {"model": STORIES, "prompt": ["x"] * 60, "max_tokens": 240, "steps": 240, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        reading = answer.iter_text()  # given up, it would hang up
        next(reading)
        refused = client.post("/v1/completions", json=body)
        assert refused.status_code == 429, refused.text
        assert 1 <= int(refused.headers["retry-after"]) <= 60


def test_json_that_matches(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"pet": {"enum": ["cat", "dog"]}}, "required": ["pet"]}
    body = {"prompt": "Once", "max_tokens": 24, "seed": 1}
    formats = ({"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}})
    texts = [post(client, "/v1/completions", **body, response_format=each)["choices"][0]["text"] for each in formats]
    texts.append(post(client, "/v1/completions", **body, json_schema=schema)["choices"][0]["text"])
    for each in ("json", schema):
        asked = {"prompt": "Once", "stream": False, "format": each, "options": {"num_predict": 24, "seed": 1}}
        texts.append(post(client, "/api/generate", **asked)["response"])
    assert all(isinstance(json.loads(text), dict) for text in texts)
    assert all(json.loads(texts[place])["pet"] in ("cat", "dog") for place in (1, 2, 4))
    assert post(client, "/v1/completions", **body, grammar='start: "a" | "b"')["choices"][0]["text"] in ("a", "b")


@pytest.mark.parametrize(
    "wrong",
    [
        {"json_schema": "/etc/hostname"}, {"grammar": ["/etc/hostname"]}, {"regex": "("}, {"regex": "a{9000}"},
        {"response_format": {"type": "json_schema"}}, {"response_format": {"type": "xml"}}, {"json_schema": False},
        {"response_format": {"type": "json_object"}, "regex": "a"},
    ],
)  # fmt: skip
def test_constraints_that_cannot_be_honoured(client: httpx.Client, wrong: dict[str, Any]) -> None:
    answer = client.post("/v1/completions", json={"model": STORIES, "prompt": "a", "max_tokens": 9, **wrong})
    assert answer.status_code == 400, answer.text
    assert "hostname" not in answer.text or "json_schema" in answer.text


def test_a_grammar_is_never_the_name_of_a_file(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={"model": STORIES, "prompt": "a", "grammar": "/etc/hostname"})
    assert answer.status_code == 400
    assert "cannot be read" not in answer.text
