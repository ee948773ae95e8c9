"""The command line as users type it: every test starts a process and looks at stdout, stderr and the exit code.

The model is tiny and random, so only the shape of an answer is tested, not what it says.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import CHAT_TEMPLATE, write_tiny

ROOT = Path(__file__).resolve().parent.parent
FIRST_MODEL_KEYS = [
    "text", "tokens", "prompt_tokens", "nfe", "seconds", "answer_tokens_per_second", "tokens_per_forward",
    "first_settled_seconds", "stop_reason", "seed", "model", "decoder", "device", "isa", "threads",
    "rows", "token_details",
]  # fmt: skip


def localdiff(*arguments: object, stdin: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "localdiff", *map(str, arguments)],
        input=stdin, capture_output=True, timeout=120, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return write_tiny(folder / "tiny.gguf")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """A model without a diffusion record."""
    return write_tiny(folder / "plain.gguf", record=False)


# ---- help and imports ----


def test_help_names_every_subcommand_and_imports_nothing_heavy() -> None:
    program = (
        "import sys, localdiff.cli; code = localdiff.cli.main(['--help']);"
        "print(sorted(set(sys.modules) & {'numpy', 'rich', 'torch', 'transformers', 'cffi', 'tokenizers', 'gguf'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in ("run", "infill", "convert", "adapt", "info", "plan", "doctor"):
        assert re.search(rf"^  {name} ", done.stdout, re.MULTILINE), name


def test_importing_the_package_loads_neither_torch_nor_rich() -> None:
    program = (
        "import sys, localdiff; localdiff.load; localdiff.GenerateOptions;"
        "print(sorted(set(sys.modules) & {'rich', 'torch', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("missing", ["torch", "safetensors"])
def test_training_says_which_package_it_lacks(missing: str, tmp_path: Path) -> None:
    absent = f"import sys; sys.modules[{missing!r}] = None\n"
    program = absent + "from localdiff.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = ["adapt", "base", "-o", str(tmp_path / "out"), "--data", "text.txt"]
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"training needs the package '{missing}', which is not installed" in done.stderr


def test_adapt_shows_its_flags_without_torch() -> None:
    from localdiff.adapt import AdaptOptions

    program = "import sys, localdiff.cli; localdiff.cli.main(['adapt', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    for field in dataclasses.fields(AdaptOptions):
        if field.name != "base":
            assert "--" + field.name.replace("_", "-") in done.stdout


def test_flags_are_the_fields_of_the_options() -> None:
    from localdiff.options import GenerateOptions

    shown = localdiff("run", "--help").stdout
    for field in dataclasses.fields(GenerateOptions):
        assert "--" + field.name.replace("_", "-") in shown
    assert "--max-new-tokens" not in localdiff("infill", "--help").stdout


def test_version_is_the_packages() -> None:
    from localdiff import __version__

    assert localdiff("--version").stdout == f"localdiff {__version__}\n"


# ---- run and infill ----


def test_run_prints_the_answer_and_nothing_else(model: Path) -> None:
    done = localdiff("run", model, "hello", "-n", 6, "--seed", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n")
    assert done.stdout == localdiff("run", model, "-p", "hello", "--max-new-tokens", 6, "--seed", 1).stdout


def test_run_json_is_one_object_with_every_promised_key(model: Path) -> None:
    done = localdiff("run", model, "hello", "-n", 6, "--seed", 7, "--steps", 3, "--json", "--threads", 1)
    result = json.loads(done.stdout)
    assert list(result) == FIRST_MODEL_KEYS
    assert (result["seed"], result["threads"], result["device"], result["model"]) == (7, 1, "cpu", "tiny")
    assert result["decoder"]["steps"] == 3
    assert result["nfe"] <= 3


@pytest.mark.parametrize("way", ["stdin", "-", "-f -", "-f file"])
def test_the_prompt_comes_from_where_it_is_said(model: Path, tmp_path: Path, way: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("hello\n")
    arguments = {"stdin": [], "-": ["-"], "-f -": ["-f", "-"], "-f file": ["-f", file]}[way]
    stdin = b"" if way == "-f file" else b"hello\n"
    done = localdiff("run", model, *arguments, "-n", 6, "--seed", 1, stdin=stdin)
    assert done.stdout == localdiff("run", model, "hello", "-n", 6, "--seed", 1).stdout
    assert done.returncode == 0


def test_a_chat_template_is_used_unless_told_not_to(folder: Path) -> None:
    model = write_tiny(folder / "chat.gguf", **{"tokenizer.chat_template": CHAT_TEMPLATE})
    chat = json.loads(localdiff("run", model, "hello", "-n", 4, "--json").stdout)
    talk = json.loads(localdiff("run", model, "hello", "-n", 4, "--json", "--system", "hell").stdout)
    bare = json.loads(localdiff("run", model, "hello", "-n", 4, "--json", "--no-chat").stdout)
    assert bare["prompt_tokens"] < chat["prompt_tokens"] < talk["prompt_tokens"]


def test_infill_keeps_what_was_given(model: Path) -> None:
    done = localdiff("infill", model, "hello [[3]] he [[]].", "--seed", 3)
    assert done.returncode == 0
    assert done.stdout.startswith("hello ")
    assert " he " in done.stdout
    assert done.stdout.endswith(".\n")


def test_a_pipe_that_closes_is_no_traceback(model: Path) -> None:
    command = f"{sys.executable} -m localdiff info {model} | head -c 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, cwd=ROOT)
    assert b"Traceback" not in done.stderr


# ---- info, plan, doctor, convert ----


def test_info_shows_the_record_and_the_types(model: Path) -> None:
    facts = json.loads(localdiff("info", model, "--json").stdout)
    assert facts["diffusion"]["mask_token"] == 262
    assert facts["arch"] == "llama"
    assert facts["types"]["F32"]["tensors"] == len(facts["tensors"]) == 12
    shown = localdiff("info", model).stdout
    assert re.search(r"mask_token +262", shown)
    assert re.search(r"F32 +100.0 % +12 tensors", shown)


def test_info_shows_files_that_cannot_be_run(folder: Path, plain: Path) -> None:
    foreign = write_tiny(folder / "foreign.gguf", arch="mamba")
    assert json.loads(localdiff("info", foreign, "--json").stdout)["arch"] == "mamba"
    assert "no record; a diffusion model runs with --diffusion" in localdiff("info", plain).stdout


def test_info_never_sends_a_files_control_characters_to_the_terminal(folder: Path) -> None:
    hostile = write_tiny(folder / "hostile.gguf", **{"general.author": "\x1b]0;x\x07\x9b2J\r\nfile  fine"})
    done = localdiff("info", hostile)
    assert done.returncode == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout)


def test_without_a_file_the_embedded_model_is_shown() -> None:
    assert localdiff("info").stdout.split()[1].endswith("localdiff-stories.gguf,")
    assert json.loads(localdiff("plan", "--json").stdout)["model"].endswith("localdiff-stories.gguf")


def test_plan_adds_up(model: Path) -> None:
    facts = json.loads(localdiff("plan", model, "-n", 32, "--json").stdout)
    assert (facts["length"], facts["batch"]) == (32, 1)
    assert min(facts[part] for part in ("weights", "session", "tables", "process")) > 0
    assert facts["total"] == facts["weights"] + facts["session"] + facts["tables"] + facts["process"]
    assert "largest resident set" in localdiff("plan", model).stdout


def test_doctor_names_the_best_row_and_the_flags_of_c_programs() -> None:
    from localdiff.engine import isa_rows

    best = next(name for name, supported in isa_rows() if supported)
    assert f"{best} (best)" in localdiff("doctor").stdout
    flags = localdiff("doctor", "--cflags", "--libs").stdout.split()
    include = next(Path(flag[2:]) for flag in flags if flag.startswith("-I"))
    library = next(Path(flag[2:]) for flag in flags if flag.startswith("-L"))
    assert (include / "localdiff.h").is_file()
    assert list(library.glob("liblocaldiff.*"))


def test_convert_adds_a_record_to_a_file_without_one(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "with.gguf"
    done = localdiff("convert", plain, "-o", out, "--diffusion", "mask=262,shift=0")
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads(localdiff("info", out, "--json").stdout)["diffusion"]["mask_token"] == 262
    assert localdiff("run", out, "hello", "-n", 4).returncode == 0


# ---- what is refused ----


def failure(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one sentence of a failure."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"localdiff: .+\n", done.stderr), done.stderr
    return done.stderr


def test_bad_files_are_refused_in_one_sentence(model: Path, folder: Path) -> None:
    data = model.read_bytes()
    (folder / "text.gguf").write_text("this is not a model")
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "cut.gguf").write_bytes(data[: len(data) // 2])
    (folder / "version.gguf").write_bytes(data[:4] + struct.pack("<I", 99) + data[8:])
    for name, words in {
        "absent.gguf": "absent.gguf", "text.gguf": "not a GGUF file", "empty.gguf": "empty.gguf",
        "cut.gguf": "cut.gguf", "version.gguf": "99",
    }.items():  # fmt: skip
        for command in (["run", folder / name, "hello"], ["info", folder / name], ["plan", folder / name]):
            assert words in failure(localdiff(*command), 1)


def test_architectures_and_types_that_cannot_be_run_are_named(model: Path, folder: Path) -> None:
    foreign = write_tiny(folder / "foreign2.gguf", arch="mamba")
    assert "mamba" in failure(localdiff("run", foreign, "hello"), 1)
    data = bytearray(model.read_bytes())
    at = data.index(b"output.weight") + len(b"output.weight") + 4 + 2 * 8
    data[at : at + 4] = struct.pack("<I", 77)
    (folder / "type.gguf").write_bytes(data)
    assert "77" in failure(localdiff("run", folder / "type.gguf", "hello"), 1)


def test_no_diffusion_record_says_which_flags_to_give(plain: Path) -> None:
    assert "--diffusion mask=ID,shift=0|1" in failure(localdiff("run", plain, "hello"), 2)
    assert localdiff("run", plain, "hello", "-n", 4, "--diffusion", "mask=262,shift=0").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hello " * 100], "canvas holds 64"),
        (["hello", "--diffusion", "mask=99999,shift=0"], "mask_token is 99999"),
        (["hello", "--diffusion", "canvas=9999"], "canvas_max is 9999"),
        (["hello", "--diffusion", "colour=red"], "colour"),
        (["hello", "--frobnicate"], "--frobnicate"),
        (["hello", "--steps", "0"], "--steps is 0, expected 1 or more"),
        (["hello", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["hello", "-n", "99"], "lower --max-new-tokens"),
        (["hello", "--alternatives", "2"], "--json"),
        (["hello", "--stop"], "See localdiff run --help"),
        (["hello", "--report-drift"], "--report-drift says how far a cache is off"),
        (["hello", "--steps", "two"], "'two'"),
        (["hello", "--temperature", "-1"], "temperature is -1"),
        (["hello", "--temperature", "nan"], "temperature is nan"),
        (["hello", "--decoder", "magic"], "magic"),
        (["hello", "--decoder", "topk", "--threshold", "0.5"], "no option --threshold; it takes steps; decoders with"),
        (["hello", "--ban", "max_new_tokens is"], "--ban names 'max_new_tokens is'"),
        (["hello", "--isa", "abacus"], "abacus"),
        (["hello", "--threads", "0"], "threads is 0"),
        (["hello", "--device", "cuda"], "cuda"),
        (["hello", "--system", "be kind"], "--system"),
        (["hello", "-p", "other"], "-p"),
        (["hello", "world"], "3 arguments"),
        (["-f", "absent.txt"], "absent.txt"),
        (["-f", "binary.txt"], "UTF-8"),
        ([], "empty"),
    ],
)
def test_wrong_usage_is_refused_in_one_sentence(model: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    assert words in failure(localdiff("run", model, *arguments, cwd=tmp_path), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["binary.txt"], "nothing is written"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["frobnicate"], 2),
        (["infill", "tiny.gguf"], 2),
        (["infill", "tiny.gguf", "no holes"], 2),
        (["infill", "tiny.gguf", "[[99]]"], 2),
        (["run", "absent.bin", "hello"], 2),
        (["plan", "tiny.gguf", "-n", "65"], 2),
        (["plan", "tiny.gguf", "-n", "0"], 2),
        (["plan", "tiny.gguf", "--batch", "0"], 2),
        (["plan", "tiny.gguf", "--threads", "0"], 2),
        (["plan", "tiny.gguf", "--isa", "avx9"], 2),
        (["run", "."], 2),
        (["infill", "."], 2),
        (["convert", "absent", "-o", "out.gguf"], 1),
        (["convert", "plain.gguf"], 2),
        (["convert", "plain.gguf", "-o", "plain.gguf", "--diffusion", "mask=1,shift=0"], 2),
        (["convert", "plain.gguf", "-o", "out.gguf", "--diffusion", "mask=99999,shift=0"], 2),
        (["adapt", "absent", "-o", "out"], 2),
        (["adapt", "absent", "-o", "out", "--data", "a.txt", "b.txt", "--mask-id", "1", "--method", "magic"], 2),
    ],
)
def test_other_commands_refuse_in_one_sentence(
    folder: Path, model: Path, plain: Path, arguments: list[str], code: int
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    failure(localdiff(*arguments, cwd=folder), code)
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}, "nothing is written"


def test_a_command_that_does_not_exist_is_answered_with_the_nearest() -> None:
    assert "'rnu', perhaps run" in failure(localdiff("rnu"), 2)


def test_help_has_each_flag_under_one_heading_and_names_no_field() -> None:
    shown = localdiff("run", "--help").stdout
    flags = re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown, re.MULTILINE)
    assert len(flags) == len(set(flags))
    assert "_" not in shown.replace("maskgit_plus", "").replace("topk_margin", "").replace("entropy_bounded", "")
    assert shown.index("Text:") < shown.index("--top-k") < shown.index("Decoding:") < shown.index("Cache:")


def test_the_decoders_that_help_names_are_those_that_have_the_option() -> None:
    from localdiff.decode.table import DECODERS
    from localdiff.options import GenerateOptions

    named: dict[str, list[str]] = {}
    for field in dataclasses.fields(GenerateOptions):
        found = re.search(r"\(([\w., -]+)\)$", field.metadata["help"])
        if found and set(found[1].split(", ")) <= set(DECODERS):
            named[field.name] = found[1].split(", ")
    assert len(named) > 15
    for name, decoders in named.items():
        assert sorted(decoders) == sorted(other for other, row in DECODERS.items() if name in row.defaults), name


def test_no_command_shows_the_help_and_is_wrong_usage() -> None:
    done = localdiff()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


def test_several_values_of_one_flag_are_one_list() -> None:
    import click

    from localdiff.cli.flags import ManyValues

    seen: dict[str, Any] = {}

    @click.command(cls=ManyValues)
    @click.argument("base", required=False)
    @click.option("--data", multiple=True)
    @click.option("--eval-data", multiple=True)
    @click.option("-n", type=int)
    def command(**values: Any) -> None:
        seen.update(values)

    command.main(["base", "--data", "a", "b", "-n", "3", "--eval-data", "c", "--data", "d"], standalone_mode=False)
    assert seen == {"base": "base", "data": ("a", "b", "d"), "eval_data": ("c",), "n": 3}
