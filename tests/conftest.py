"""Fixtures shared by all tests: where the data is, and tiny checkpoints made on the spot."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from localdiff.model import Model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the package remembers between runs is kept out of the user's own folders, for child processes too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real texts, tokenizers and checkpoints; tests that need it skip where it is absent."""
    path = Path(os.environ.get("LOCALDIFF_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no data folder at {path}; set LOCALDIFF_DATA")
    return path


@pytest.fixture(scope="module")
def stories() -> Iterator["Model"]:
    """The embedded model."""
    import localdiff

    with localdiff.load(threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running server with the models serving.STORIES and serving.CHATTY."""
    from serving import CHATTY, STORIES, Server, write_chatty

    chatty = write_chatty(tmp_path_factory.mktemp("served"))
    stories = ROOT / "localdiff" / "models" / f"{STORIES}.gguf"
    with Server(str(stories), "--model", f"{CHATTY}={chatty}", "--queue", "40") as running:
        yield running.url
