"""What the README claims of models is what the engine's and the converter's tables hold."""

import re
from pathlib import Path

from localdiff.convert.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent


def table() -> dict[str, list[str]]:
    """Architecture -> cells of the README's table of models."""
    rows = re.findall(r"^\| `([\w.-]+)` \|(.*)\|$", (ROOT / "README.md").read_text().split("## Models")[1], re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows if len(cells.split("|")) == 4}


def test_every_architecture_that_opens_is_a_row() -> None:
    source = (ROOT / "csrc" / "arch.cpp").read_text()
    assert set(table()) == set(re.findall(r'\{\.name = "([\w.-]+)"', source))
    assert {cells[1] for cells in table().values()} == {"yes"}


def test_every_model_type_that_converts_is_named_in_the_row_of_its_architecture() -> None:
    claimed = {name: set() if cells[2] == "-" else set(cells[2].split(", ")) for name, cells in table().items()}
    held: dict[str, set[str]] = {name: set() for name in claimed}
    for model_type, family in FAMILIES.items():
        held[family.arch].add(model_type)
    assert claimed == held


def test_every_claim_of_a_reference_has_its_cases() -> None:
    from architectures import FAMILIES as CASES
    from test_architectures_llama import KNOWN

    with_llama = {CASES[name].arch for name in KNOWN}
    apart = {"diffusion-gemma"}  # test_diffusion_gemma.py
    assert {case.arch for case in CASES.values()} | apart == set(table())
    for name, cells in table().items():
        assert cells[3].startswith("transformers" if name in apart else "transformers, numpy"), name
        assert ("llama.cpp" in cells[3]) == (name in with_llama), name


def test_every_decoder_is_listed_with_its_source() -> None:
    from localdiff.decode.table import DECODERS

    section = (ROOT / "README.md").read_text().split("## Decoders")[1].split("##")[0]
    assert dict(re.findall(r"^\| `([\w.-]+)` \| (.*) \|$", section, re.M)) == {
        name: row.source for name, row in DECODERS.items()
    }
