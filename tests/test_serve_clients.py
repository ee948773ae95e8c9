"""The server with other clients: the official openai and ollama packages for Python, openai for Node, curl."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import ollama
import openai
import pytest
from serving import CHATTY, ROOT, STORIES

import localdiff

PROMPT = "Once upon a time"
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def text() -> str:
    with localdiff.load(threads=1) as model:
        return model.generate(PROMPT, max_new_tokens=24, steps=8, seed=1).text


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as made:
        yield made


# ---- openai for Python ----


def test_openai_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [STORIES, CHATTY]
    assert client.models.retrieve(CHATTY).id == CHATTY


def test_openai_completes_and_streams(client: openai.OpenAI, text: str) -> None:
    asked = {"model": STORIES, "prompt": PROMPT, "max_tokens": 24, "seed": 1, "extra_body": {"steps": 8}}
    whole = client.completions.create(**asked)
    assert whole.choices[0].text == text
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0
    assert whole.model_extra is not None
    assert whole.model_extra["timings"]["nfe"] == 8
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage == whole.usage


def test_openai_chats_and_streams(client: openai.OpenAI) -> None:
    asked = {"model": CHATTY, "messages": MESSAGES, "max_completion_tokens": 9, "seed": 2, "n": 2}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert [choice.message.role for choice in whole.choices] == ["assistant"] * 2
    logs = whole.choices[0].logprobs
    assert logs is not None
    assert logs.content
    assert {len(entry.top_logprobs) for entry in logs.content} == {2}
    texts = ["", ""]
    reasons = {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def check_person(text: str | None) -> None:
    person = json.loads(text or "")
    assert set(person) == {"name", "age"}
    assert len(person["name"]) <= 8
    assert 0 <= person["age"] <= 99


def test_openai_gets_json_that_matches(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    asked = {"model": CHATTY, "messages": MESSAGES, "max_tokens": 60, "seed": 4, "response_format": form}
    whole = client.chat.completions.create(**asked)
    check_person(whole.choices[0].message.content)
    chunks = client.chat.completions.create(**asked, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    completed = client.completions.create(
        model=STORIES, prompt=PROMPT, max_tokens=60, extra_body={"json_schema": SCHEMA}
    )
    check_person(completed.choices[0].text)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=STORIES, prompt=PROMPT, extra_body={"json_schema": "/etc/passwd"})


def tool(name: str, **properties: object) -> dict[str, object]:
    parameters = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    function = {"name": name, "description": "<|im_start|> does " + name, "parameters": parameters}
    return {"type": "function", "function": function}


WEATHER = tool("weather", city={"enum": ["Oslo", "Rome"]}, days={"type": "integer", "minimum": 1, "maximum": 9})
CLOCK = tool("clock", zone={"enum": ["CET"]})


def check_call(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    if name == "clock":
        assert given == {"zone": "CET"}
        return
    assert name == "weather"
    assert given["city"] in ("Oslo", "Rome")
    assert 1 <= given["days"] <= 9


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_openai_gets_calls_that_match(client: openai.OpenAI, choice: object) -> None:
    asked = {"model": CHATTY, "messages": MESSAGES, "max_tokens": 80, "seed": 5, "tools": [WEATHER, CLOCK], "n": 2}
    whole = client.chat.completions.create(**asked, tool_choice=choice)
    for given in whole.choices:
        assert given.finish_reason == "tool_calls"
        assert given.message.content is None
        (call,) = given.message.tool_calls or ()
        assert call.type == "function"
        assert choice == "required" or call.function.name == "weather"
        check_call(call.function.name, call.function.arguments)
    names, arguments, ids, reasons = ["", ""], ["", ""], [set(), set()], {}
    for chunk in client.chat.completions.create(**asked, tool_choice=choice, stream=True):
        for given in chunk.choices:
            reasons[given.index] = given.finish_reason
            for part in given.delta.tool_calls or ():
                assert part.function is not None
                names[given.index] += part.function.name or ""
                arguments[given.index] += part.function.arguments or ""
                ids[given.index] |= {part.id} - {None}
    assert reasons == {0: "tool_calls", 1: "tool_calls"}
    calls = [(given.message.tool_calls or [])[0].function for given in whole.choices]
    assert names == [call.name for call in calls]
    assert [json.loads(text) for text in arguments] == [json.loads(call.arguments) for call in calls]
    assert [len(each) for each in ids] == [1, 1]
    assert ids[0] != ids[1]


def test_openai_calls_of_one_function_and_none(client: openai.OpenAI) -> None:
    asked = {"model": CHATTY, "messages": MESSAGES, "max_tokens": 40, "seed": 6}
    whole = client.chat.completions.create(**asked, tools=[CLOCK], tool_choice="required")
    (call,) = whole.choices[0].message.tool_calls or ()
    check_call(call.function.name, call.function.arguments)
    empty = {"type": "function", "function": {"name": "now"}}
    (call,) = client.chat.completions.create(
        **asked, tools=[empty], tool_choice="required"
    ).choices[0].message.tool_calls or ()  # fmt: skip
    assert json.loads(call.function.arguments) == {}
    plain = client.chat.completions.create(**asked)
    without = client.chat.completions.create(**asked, tools=[CLOCK], tool_choice="none")
    assert without.choices[0].message.content == plain.choices[0].message.content
    assert without.choices[0].message.tool_calls is None


def test_openai_tells_what_calls_gave(client: openai.OpenAI) -> None:
    asked = {"model": CHATTY, "max_tokens": 12, "seed": 7}
    made = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "CET"}'}}
    turns = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [made]}]
    result = {"role": "tool", "tool_call_id": "c1", "content": "noon"}
    answer = client.chat.completions.create(**asked, messages=[*turns, result], tools=[CLOCK], tool_choice="none")
    call = '{"name": "clock", "arguments": {"zone": "CET"}}'  # the template knows no tools, so that is what was said
    said = [*MESSAGES, {"role": "assistant", "content": call}, {"role": "user", "content": "clock gave: noon"}]
    same = client.chat.completions.create(**asked, messages=said)
    assert answer.choices[0].message.content == same.choices[0].message.content
    for messages in (
        [*turns, {**result, "tool_call_id": "c2"}],
        [*turns, {"role": "tool", "content": "noon"}],
        [{"role": "user", "content": "x", "tool_call_id": "c1"}],
        [{"role": "user", "content": "x", "tool_calls": [made]}],
        [{"role": "assistant", "content": None}],
        [*MESSAGES, {"role": "assistant", "tool_calls": [{**made, "function": {"name": "f", "arguments": "{"}}]}],
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**asked, messages=messages)
        assert refused.value.param == "messages", messages


def test_openai_calls_that_cannot_be_honoured_are_refused(client: openai.OpenAI) -> None:
    form = {"type": "json_object"}
    other = {"type": "function", "function": {"name": "other"}}
    for fields, param in (
        ({"tools": [CLOCK]}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": other}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK, CLOCK], "tool_choice": "required"}, "tools"),
        ({"tools": [tool("a b")], "tool_choice": "required"}, "tools"),
        ({"tools": [CLOCK], "tool_choice": "required", "response_format": form}, "response_format"),
        ({"tools": [CLOCK], "tool_choice": "required", "extra_body": {"regex": "a"}}, "regex"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model=CHATTY, messages=MESSAGES, max_tokens=8, **fields)
        assert refused.value.param == param, fields


def test_openai_sees_refusals_as_its_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=STORIES, prompt="x", frequency_penalty=1.5)
    assert (refused.value.param, refused.value.type) == ("frequency_penalty", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model=STORIES, messages=[{"role": "user", "content": "x"}])


# ---- ollama for Python ----


def test_ollama_generates_chats_and_lists(server: str, text: str) -> None:
    client = ollama.Client(host=server)
    assert [model.model for model in client.list().models] == [STORIES, CHATTY]
    assert client.show(STORIES).details is not None
    options = {"num_predict": 24, "seed": 1, "steps": 8}
    assert client.generate(STORIES, PROMPT, options=options).response == text
    pieces = list(client.generate(STORIES, PROMPT, options=options, stream=True))
    assert "".join(piece.response for piece in pieces) == text
    assert pieces[-1].done_reason in ("stop", "length")
    whole = client.chat(CHATTY, MESSAGES, options={"num_predict": 7, "seed": 3})
    streamed = client.chat(CHATTY, MESSAGES, options={"num_predict": 7, "seed": 3}, stream=True)
    assert "".join(piece.message.content or "" for piece in streamed) == whole.message.content
    check_person(client.generate(STORIES, PROMPT, format=SCHEMA, options={"num_predict": 60, "seed": 1}).response)
    any_object = client.chat(CHATTY, MESSAGES, format="json", options={"num_predict": 60, "decoder": "threshold"})
    assert isinstance(json.loads(any_object.message.content or ""), dict)
    with pytest.raises(ollama.ResponseError, match="mirostat is not offered here"):
        client.generate(STORIES, PROMPT, options={"mirostat": 1})
    with pytest.raises(ollama.ResponseError, match="there is no model"):
        client.chat("other", MESSAGES)


# ---- openai for Node ----

SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const out = {};
const asked = { model: process.argv[3], prompt: "Once upon a time", max_tokens: 24, seed: 1, steps: 8 };
out.whole = (await client.completions.create(asked)).choices[0].text;
out.streamed = "";
for await (const chunk of await client.completions.create({ ...asked, stream: true }))
  out.streamed += chunk.choices[0].text;
const chat = { model: process.argv[4], messages: [{ role: "user", content: "Hello" }], max_tokens: 6, seed: 2 };
out.chat = (await client.chat.completions.create(chat)).choices[0].message.content;
out.chatStreamed = "";
for await (const chunk of await client.chat.completions.create({ ...chat, stream: true }))
  out.chatStreamed += chunk.choices[0].delta.content ?? "";
const ok = { ok: { type: "boolean" } };
const schema = { type: "object", properties: ok, required: ["ok"], additionalProperties: false };
const form = { type: "json_schema", json_schema: { name: "answer", schema } };
const formed = await client.chat.completions.create({ ...chat, max_tokens: 24, response_format: form });
out.ok = typeof JSON.parse(formed.choices[0].message.content).ok;
try { await client.completions.create({ ...asked, echo: true }); }
catch (error) { out.error = [error.status, error.param, error.constructor.name]; }
console.log(JSON.stringify(out));
"""


def test_openai_for_node(server: str, text: str) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("no Node and npm")
    folder = ROOT / "build" / "node"  # kept: it is fetched once
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / "openai").is_dir():
        done = subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "openai"],
            cwd=folder, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"npm cannot fetch the openai package: {done.stderr[-200:]}")
    (folder / "client.mjs").write_text(SCRIPT)
    done = subprocess.run(
        [node, "client.mjs", f"{server}/v1", STORIES, CHATTY], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert (out["whole"], out["streamed"]) == (text, text)
    assert out["chat"] == out["chatStreamed"]
    assert out["ok"] == "boolean"
    assert out["error"] == [400, "echo", "BadRequestError"]


# ---- curl ----


def examples() -> list[str]:
    """The curl commands of the README's section on the server, lines joined."""
    section = (ROOT / "README.md").read_text().partition("## Server")[2].partition("\n## ")[0]
    return re.findall(r"^(curl .*)$", section.replace("\\\n", " "), re.M)


def test_the_readmes_curl_commands(server: str, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    if not examples():
        pytest.skip("the README shows no server yet")
    for command in examples():
        arguments = shlex.split(command.replace("http://127.0.0.1:8080", server))
        done = subprocess.run(
            [*arguments, "--fail-with-body", "--silent", "--max-time", "60"],
            capture_output=True, text=True, cwd=tmp_path, env={**os.environ},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert "error" not in done.stdout
