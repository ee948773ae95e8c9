"""The wheel as users get it: its contents, and that it works where there is no compiler, no torch and nothing of ours.

The clean environment holds the wheel and what its metadata asks for, transitively, linked from the environment of the
tests, so that a forgotten dependency shows and no network is needed. Also the C example, built against the installed
package in each of the three ways that the package offers.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from tiny_gguf import write_tiny

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "csrc" / "examples" / "embed.c"
PLUGINS = [  # and what doctor says with each: the real one finds a GPU or says why not
    (ROOT / "build" / "dev" / "liblocaldiff_cuda_emulated.so", "cuda: plug-in .*/localdiff_cuda13/liblocaldiff"),
    (ROOT / "localdiff" / "lib" / "liblocaldiff_cuda.so", "cuda: plug-in .*/localdiff_cuda13/|cpu: no NVIDIA GPU"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("scikit_build_core") is None:
        pytest.skip("scikit-build-core is not installed, run tools/dev test")
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "-w", folder, "-q"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def requirements(wheel: Path) -> set[str]:
    """The distributions that a plain install of the wheel brings along, with theirs."""
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    todo = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
    found: set[str] = set()
    while todo:
        requirement = Requirement(todo.pop())
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name.lower() not in found:
            found.add(requirement.name.lower())
            todo += importlib.metadata.requires(requirement.name) or []
    return found


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel and its requirements only."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in requirements(wheel):
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            source = Path(str(importlib.metadata.distribution(name).locate_file(top)))
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(source)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "-q", wheel], check=True)
    return folder / "bin"


def run_clean(clean: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command with an empty PATH: no compiler, no other program."""
    environment = {"PATH": str(clean), "HOME": str(cwd), "LANG": "C.UTF-8"}
    return subprocess.run(
        [clean / "localdiff", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


def test_the_wheel_holds_the_library_the_header_and_the_model(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entries = archive.infolist()
    for name in (
        "localdiff/lib/liblocaldiff.so", "localdiff/include/localdiff.h", "localdiff/lib/pkgconfig/localdiff.pc",
        "localdiff/lib/cmake/localdiff/localdiff-config.cmake", "localdiff/py.typed", "localdiff/_abi.py",
    ):  # fmt: skip
        assert name in names
    assert not [entry.filename for entry in entries if entry.external_attr >> 28 == 0xA], "no symbolic links"
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests", "build"))]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"localdiff"}
    models = [entry for entry in entries if entry.filename.endswith(".gguf")]
    assert [entry.filename for entry in models] == ["localdiff/models/localdiff-stories.gguf"]
    assert models[0].file_size <= 8 << 20
    assert re.fullmatch(r"localdiff-[\d.]+-py3-none-\w+\.whl", wheel.name)


def test_a_plain_install_brings_no_framework(wheel: Path) -> None:
    assert not requirements(wheel) & {"torch", "transformers", "accelerate", "jax", "tensorflow", "matplotlib"}


def test_the_library_needs_only_the_systems_own(wheel: Path, tmp_path: Path) -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf")
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract("localdiff/lib/liblocaldiff.so", tmp_path)
    listing = subprocess.run([readelf, "-d", library], capture_output=True, text=True, check=True).stdout
    needed = {name.split(".so")[0] for name in re.findall(r"NEEDED.*\[(.+?)\]", listing)}
    assert needed <= {"libc", "libm", "libpthread", "libdl", "ld-linux-x86-64", "ld-linux-aarch64"}


def test_the_installed_command_works_without_compiler_and_torch(clean: Path, tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf")
    before = {path.name for path in tmp_path.iterdir()}
    done = run_clean(clean, "run", model, "hello", "-n", 6, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "tiny"
    for arguments in (["doctor"], ["info", model], ["plan", model], ["adapt", "--help"]):
        done = run_clean(clean, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} - before <= {".cache"}, "nothing is written beside the cache"
    assert {path.name for path in (tmp_path / ".cache").rglob("*.*")} <= {"arithmetic.json"}


def test_the_embedded_model_answers(clean: Path, tmp_path: Path) -> None:
    done = run_clean(clean, "run", "Once upon a time", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["text"]) > 20


def test_convert_works_in_a_plain_install(clean: Path, tmp_path: Path) -> None:
    plain = write_tiny(tmp_path / "plain.gguf", record=False)
    out = tmp_path / "out.gguf"
    done = run_clean(clean, "convert", plain, "-o", out, "--diffusion", "mask=262,shift=0", cwd=tmp_path)
    assert (done.returncode, out.is_file()) == (0, True), done.stderr


def test_serve_says_what_to_install(clean: Path, tmp_path: Path) -> None:
    done = run_clean(clean, "serve", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"localdiff: the server needs .+ pip install 'localdiff\[serve\]'\n", done.stderr)


def test_adapt_says_what_to_install(clean: Path, tmp_path: Path) -> None:
    done = run_clean(clean, "adapt", "x", "-o", "out", "--data", "a.txt", "--mask-id", "1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"localdiff: training needs .+ pip install 'localdiff\[train\]'\n", done.stderr)


# ---- C ----


def embed(model: Path, *command: str | Path, steps: int = 0) -> tuple[int, list[int], str]:
    """Exit status, token ids and what the callback of the example said."""
    arguments = (model, "262", "0", str(steps), "5", "7", "8", "9")
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    return done.returncode, [int(token) for token in done.stdout.split()], done.stderr


@pytest.mark.parametrize("way", ["doctor", "pkg-config", "cmake"])
def test_the_c_example_builds_against_the_installed_package(clean: Path, tmp_path: Path, way: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    tool = {"doctor": compiler, "pkg-config": shutil.which("pkg-config"), "cmake": shutil.which("cmake")}[way]
    if compiler is None or tool is None:
        pytest.skip(f"no C compiler or no {way}")
    library = Path(run_clean(clean, "doctor", "--libs", cwd=tmp_path).stdout.split()[0].removeprefix("-L"))
    program = tmp_path / "embed"
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    if way == "cmake":
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.20)\nproject(embed C)\nfind_package(localdiff REQUIRED)\n"
            f"add_executable(embed {EXAMPLE})\ntarget_link_libraries(embed localdiff::localdiff)\n"
        )
        environment = {**os.environ, "CMAKE_PREFIX_PATH": str(library.parent)}
        subprocess.run([tool, "-S", tmp_path, "-B", tmp_path], check=True, capture_output=True, env=environment)
        subprocess.run([tool, "--build", tmp_path], check=True, capture_output=True)
    else:
        if way == "doctor":
            asked = run_clean(clean, "doctor", "--cflags", "--libs", cwd=tmp_path).stdout
        else:
            environment = {**os.environ, "PKG_CONFIG_PATH": str(library / "pkgconfig")}
            asked = subprocess.run(
                [tool, "--cflags", "--libs", "localdiff"], capture_output=True, text=True, check=True, env=environment
            ).stdout + f" -Wl,-rpath,{library}"  # fmt: skip
        subprocess.run([compiler, *strict, EXAMPLE, *asked.split(), "-o", program], check=True)
    model = write_tiny(tmp_path / "tiny.gguf")
    status, tokens, said = embed(model, program)
    assert (status, tokens) == (0, expected(model))
    assert said.splitlines() == [f"step {step}: {5 - step} of 8 positions are open" for step in range(1, 6)]
    status, draft, said = embed(model, program, steps=2)
    assert (status, len(said.splitlines()), draft.count(262)) == (3, 2, 3), "the draft is printed, masks and all"
    assert all(token in (262, last) for token, last in zip(draft, tokens, strict=True))
    wrong = subprocess.run([program, tmp_path / "absent", "1", "0", "0", "1", "2"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "absent" in wrong.stderr


@pytest.mark.parametrize("checked_by", ["valgrind", "AddressSanitizer"])
def test_the_c_example_leaves_no_memory_behind(clean: Path, tmp_path: Path, checked_by: str) -> None:
    compiler, valgrind = shutil.which("gcc") or shutil.which("clang"), shutil.which("valgrind")
    if compiler is None or (checked_by == "valgrind" and valgrind is None):
        pytest.skip(f"no C compiler or no {checked_by}")
    flags = run_clean(clean, "doctor", "--cflags", "--libs", cwd=tmp_path).stdout.split()
    sanitized = ["-fsanitize=address,undefined"] if checked_by == "AddressSanitizer" else []
    program = tmp_path / "embed"
    subprocess.run([compiler, "-std=c11", "-g", *sanitized, EXAMPLE, *flags, "-o", program], check=True)
    checker = [valgrind, "-q", "--error-exitcode=9", "--leak-check=full"] if checked_by == "valgrind" else []
    model = write_tiny(tmp_path / "tiny.gguf")
    for steps, status in ((0, 0), (2, 3)):
        found, tokens, said = embed(model, *filter(None, checker), program, steps=steps)
        assert (found, len(tokens)) == (status, 5), said
    absent = subprocess.run([*filter(None, checker), program, "absent", "1", "0", "0", "1", "2"], capture_output=True)
    assert absent.returncode == 1, absent.stderr


@pytest.mark.parametrize("language", ["c11", "c++20"])
def test_the_header_compiles_alone(clean: Path, tmp_path: Path, language: str) -> None:
    compiler = shutil.which("c++" if language == "c++20" else "cc")
    if compiler is None:
        pytest.skip(f"no compiler for {language}")
    flags = run_clean(clean, "doctor", "--cflags", cwd=tmp_path).stdout.split()
    source = tmp_path / ("header.cpp" if language == "c++20" else "header.c")
    source.write_text("#include <localdiff.h>\nint main(void) { return ld_abi() == LD_ABI ? 0 : 1; }\n")
    strict = [f"-std={language}", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
    subprocess.run([compiler, *strict, *flags, "-c", source, "-o", tmp_path / "header.o"], check=True)


def expected(model: Path) -> list[int]:
    """The same decoding through the Python binding."""
    import numpy as np

    from localdiff.engine import EngineModel, File, Request

    tokens = np.array([7, 8, 9, 262, 262, 262, 262, 262], np.int32)
    masked = np.arange(3, 8, dtype=np.int32)
    with File.open(model) as file, EngineModel(file) as engine, engine.session(slot_length=8) as session:
        while len(masked):
            (proposal,) = session.propose([Request(tokens, masked, forbidden=np.array([262], np.int32))])
            best = int(proposal.probability.argmax())
            tokens[masked[best]] = proposal.token[best]
            masked = np.delete(masked, best)
    return [int(token) for token in tokens[3:]]


@pytest.mark.parametrize(("plugin", "answer"), PLUGINS)
def test_the_gpu_wheel_is_found_beside_the_other(clean: Path, tmp_path: Path, plugin: Path, answer: str) -> None:
    """The wheel localdiff-cuda13 around a plug-in that is built: that of the emulator works without a GPU."""
    if not plugin.is_file():
        pytest.skip(f"{plugin.relative_to(ROOT)} is not built (tools/dev build, tools/dev cuda)")
    package = tmp_path / "tree" / "csrc" / "cuda" / "package"
    shutil.copytree(ROOT / "csrc" / "cuda" / "package", package)
    for name in ("LICENSE", "localdiff/__init__.py"):
        (tmp_path / "tree" / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "tree" / name)
    define = f"--config-settings=cmake.define.LD_CUDA_PLUGIN={plugin}"
    pip = [sys.executable, "-m", "pip"]
    done = subprocess.run(
        [*pip, "wheel", package, define, "--no-deps", "--no-build-isolation", "-w", tmp_path, "-q"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("localdiff_cuda13-*-py3-none-*.whl")
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    assert names == {f"localdiff_cuda13/{name}" for name in ("__init__.py", "LICENSE", "liblocaldiff_cuda.so")}
    version = run_clean(clean, "--version", cwd=tmp_path).stdout.split()[-1]
    assert f"Requires-Dist: localdiff=={version}\n" in metadata

    def device() -> str:
        return re.search(r"^device +(.+)$", run_clean(clean, "doctor", cwd=tmp_path).stdout, re.MULTILINE)[1]

    there = [*pip, "--python", clean / "python"]
    assert device() == "cpu: the GPU plug-in is not installed (pip install localdiff-cuda13)"
    subprocess.run([*there, "install", "--no-deps", "--no-index", "-q", path], check=True)
    try:
        assert re.match(answer, device())
    finally:
        subprocess.run([*there, "uninstall", "-y", "-q", "localdiff-cuda13"], check=True)
