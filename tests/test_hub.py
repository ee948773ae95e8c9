"""Downloading from a hub on loopback, as a user does: pull, list, run by name, rm; and everything that goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_double import COMMIT, Hub
from tiny_gguf import write_tiny

from localdiff.errors import ModelFileError, OptionError
from localdiff.hub.download import _check_room
from localdiff.hub.names import Name, choose, type_of

REPOSITORY = "someone/tiny-GGUF"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny(tmp_path_factory.mktemp("hub") / "tiny.gguf").read_bytes()


@pytest.fixture
def hub(content: bytes) -> Iterator[Hub]:
    files = {"tiny.Q4_0.gguf": content, "tiny.Q8_0.gguf": content, "README.md": b"# tiny", "evil.bin": b"pickle"}
    with Hub({REPOSITORY: files, "someone/weights": {"model.safetensors": b"x"}}) as running:
        yield running


class Machine:
    """A user's machine: its folder of models, and the hub that it asks."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.models = folder / "models"
        self.environment = {
            **os.environ, "LOCALDIFF_MODELS": str(self.models), "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip

    def __call__(self, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "localdiff", *arguments],
            capture_output=True, text=True, env={**self.environment, **environment}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done

    @property
    def listed(self) -> list[str]:
        return [model["name"] for model in json.loads(self("list", "--json").stdout)["models"]]


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine(hub, tmp_path)


def test_pull_list_run_offline_and_rm(hub: Hub, machine: Machine, content: bytes) -> None:
    done = machine("pull", REPOSITORY)
    path = Path(done.stdout.strip())
    assert path == machine.models / "someone" / "tiny-GGUF" / "tiny.Q4_0.gguf"
    assert path.read_bytes() == content
    assert COMMIT[:12] in done.stderr
    assert {each.name for each in path.parent.iterdir()} == {"tiny.Q4_0.gguf", "tiny.Q4_0.gguf.json"}
    assert not [path for _, path, _ in hub.requests if "evil" in path or "README" in path]

    asked = len(hub.requests)
    assert machine.listed == [f"{REPOSITORY}:Q4_0"]
    for name in (REPOSITORY, f"{REPOSITORY}:q4_0"):
        answer = json.loads(machine("run", name, "hello", "-n", "4", "--json", HF_HUB_OFFLINE="1").stdout)
        assert answer["model"] == "tiny"
    assert machine("info", REPOSITORY).stdout == machine("info", str(path)).stdout
    assert "MiB" in machine("plan", REPOSITORY).stdout
    assert len(hub.requests) == asked, "only pull asks the hub"

    assert "was here already" in machine("pull", REPOSITORY).stderr
    machine("pull", f"{REPOSITORY}:Q8_0")
    assert machine.listed == [f"{REPOSITORY}:Q4_0", f"{REPOSITORY}:Q8_0"]
    assert "could be" in machine("run", REPOSITORY, "hello", status=2).stderr
    machine("rm", f"{REPOSITORY}:Q8_0")
    assert machine.listed == [f"{REPOSITORY}:Q4_0"]
    machine("rm", REPOSITORY)
    assert (machine.listed, path.exists()) == ([], False)
    assert "is not on this machine" in machine("rm", REPOSITORY, status=2).stderr


def test_a_cut_download_is_resumed(hub: Hub, machine: Machine) -> None:
    chunk = 10 << 20  # the library writes in chunks of this
    hub.repositories[REPOSITORY] = {"tiny.Q4_0.gguf": bytes(range(256)) * (12 << 12)}
    hub.cut_after = chunk + 1000
    done = machine("pull", REPOSITORY)
    assert Path(done.stdout.strip()).read_bytes() == hub.repositories[REPOSITORY]["tiny.Q4_0.gguf"]
    ranges = [span for method, path, span in hub.requests if method == "GET" and path.endswith("Q4_0.gguf")]
    assert ranges == [None, f"bytes={chunk}-"], "what had arrived is not sent again"


def test_a_file_with_another_sum_is_removed(hub: Hub, machine: Machine) -> None:
    hub.corrupt = True
    done = machine("pull", REPOSITORY, status=1)
    assert "SHA-256" in done.stderr
    assert machine.listed == []
    assert not list(machine.models.rglob("*.gguf"))
    hub.corrupt = False
    machine("pull", REPOSITORY)
    assert machine.listed == [f"{REPOSITORY}:Q4_0"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("someone/absent",), 1, "the hub has no someone/absent"),
        (("someone/weights",), 2, "holds no GGUF file"),
        ((f"{REPOSITORY}:Q5_K_M",), 2, "no files of type Q5_K_M, expected one; it has Q4_0, Q8_0"),
        ((REPOSITORY, "--revision", "v9"), 1, "no such revision"),
        (("nothing",), 2, "there is no short name 'nothing'"),
        (("../etc/passwd",), 2, "is no name of a model"),
        (("a b",), 2, "is no name of a model"),
    ],
)
def test_what_is_refused(machine: Machine, arguments: tuple[str, ...], status: int, words: str) -> None:
    done = machine("pull", *arguments, status=status)
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(machine.models.rglob("*.gguf*"))


def test_a_hub_that_cannot_be_reached(machine: Machine) -> None:
    for environment in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        done = machine("pull", REPOSITORY, status=1, **environment)
        assert "the hub cannot be reached" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDIFF_MODELS", str(tmp_path / "models"))
    name = Name.parse(REPOSITORY)
    _check_room(name, 1_000_000_000, memory=1_200_000_000)
    with pytest.raises(OptionError, match="needs about 1.1 GB of memory, but this machine has 1.0 GB"):
        _check_room(name, 1_000_000_000, memory=1_000_000_000)
    with pytest.raises(ModelFileError, match="free"):
        _check_room(name, 1 << 60, memory=None)


def test_types_are_read_from_the_names_of_files() -> None:
    assert type_of("diffullama.Q4_K_M.gguf") == "Q4_K_M"
    assert type_of("Dream-v0-Instruct-7B-q8_0.gguf") == "Q8_0"
    assert type_of("model-IQ4_XS-00001-of-00003.gguf") == "IQ4_XS"
    assert type_of("llada-bf16.gguf") == "BF16"
    assert type_of("model.gguf") is None


def test_the_file_that_is_meant() -> None:
    files = ["a.Q2_K.gguf", "a.Q4_K_M.gguf", "a.Q8_0.gguf", "a.mmproj-F16.gguf", "README.md"]
    assert choose(files, Name.parse("x/y")) == ["a.Q4_K_M.gguf"]
    assert choose(files, Name.parse("x/y:q8_0")) == ["a.Q8_0.gguf"]
    assert choose(["only.gguf"], Name.parse("x/y")) == ["only.gguf"]
    parts = [f"a-Q8_0-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    assert choose([*parts, "a.Q2_K.gguf"], Name.parse("x/y:Q8_0")) == parts
    with pytest.raises(OptionError, match="2 of the 3 parts"):
        choose(parts[:2], Name.parse("x/y"))
    with pytest.raises(OptionError, match="several files"):
        choose(["a.IQ1_S.gguf", "a.IQ2_S.gguf"], Name.parse("x/y"))
