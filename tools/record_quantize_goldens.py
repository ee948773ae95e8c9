"""Records llama.cpp's quantiser into tests/goldens/quantize.json: the type it gives each tensor, its errors, and
what it makes of a model with an importance matrix of localdiff.

Usage: python tools/record_quantize_goldens.py --smollm2 FILE.gguf --python PYTHON_WITH_LLAMA_CPP
       python tools/record_quantize_goldens.py --python PYTHON_WITH_LLAMA_CPP --imatrix-only

Models and tensors come from tests/quantize_cases.py. Types are read from what a dry run prints; errors are those of its
encoders on the same values, with and without importance. llama.cpp runs in processes of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
OUTPUT = ROOT / "tests" / "goldens" / "quantize.json"

TYPES = """
import ctypes, json, re, sys
import llama_cpp
lines = []
@llama_cpp.llama_log_callback
def log(level, text, data):
    lines.append(text.decode())
llama_cpp.llama_log_set(log, None)
llama_cpp.llama_backend_init()
found = {}
for name, file_type in json.loads(sys.argv[2]).items():
    for importance in (False, True):
        lines.clear()
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.dry_run, params.nthread = file_type, True, 1
        if importance:  # what it holds does not matter to the choice of types
            entry = type(params.imatrix)._type_
            nothing = (ctypes.c_float * 1)(1)
            entries = (entry * 2)()
            entries[0].name, entries[0].data, entries[0].size = b"none", nothing, 1
            params.imatrix = entries
        status = llama_cpp.llama_model_quantize(sys.argv[1].encode(), b"/dev/null", ctypes.byref(params))
        text = "".join(lines)
        if status:
            found[name + "+imatrix" * importance] = None
            continue
        types = {}
        row = r"\\[ *\\d+/ *\\d+\\] +(\\S+) +- \\[[^]]*\\], type = +(\\w+), "
        row += r".*?size = [^\\n]*?MiB(?: -> [^\\n]*?\\((\\w+)\\))?\\n"
        for tensor, before, after in re.findall(row, text, re.DOTALL):
            types[tensor] = after or before
        found[name + "+imatrix" * importance] = types
print(json.dumps(found))
"""

ENCODE = """
import ctypes, glob, os, sys
import llama_cpp, numpy as np
folder = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")
lib = ctypes.CDLL(glob.glob(os.path.join(folder, "libggml-base.*"))[0])
llama_cpp.llama_backend_init()
class Parameters(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]
lib.ggml_init.argtypes, lib.ggml_init.restype = [Parameters], ctypes.c_void_p
lib.ggml_init(Parameters(1 << 20, None, False))  # fills the tables that encoding reads
encode = lib.ggml_quantize_chunk
encode.restype = ctypes.c_size_t
encode.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
given, out = np.load(sys.argv[1]), {}
for key in given.files:
    if not key.startswith("values "):
        continue
    name = key.removeprefix("values ")
    values, importance = np.ascontiguousarray(given[key]), np.ascontiguousarray(given["importance " + name])
    for kind in map(int, sys.argv[3].split(",")):
        for weighted in (0, 1):
            room = np.zeros(values.nbytes, np.uint8)
            weights = importance.ctypes.data if weighted else None
            used = encode(kind, values.ctypes.data, room.ctypes.data, 0, *values.shape, weights)
            out[f"{name}|{kind}|{weighted}"] = room[:used]
np.savez(sys.argv[2], **out)
"""


# The file is read as llama-quantize reads it, by ggml's own reader, and handed to the library's quantiser.
IMATRIX = """
import ctypes, glob, json, os, sys
import llama_cpp, numpy as np
model, matrix, out, file_types = sys.argv[1:4] + [json.loads(sys.argv[4])]
folder = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")
lib = ctypes.CDLL(glob.glob(os.path.join(folder, "libggml-base.*"))[0])
class Parameters(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.POINTER(ctypes.c_void_p))]
def function(name, result, *arguments):
    found = getattr(lib, name)
    found.restype, found.argtypes = result, arguments
    return found
pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
context = pointer()
parameters = Parameters(False, ctypes.pointer(context))
file = function("gguf_init_from_file", pointer, text, Parameters)(matrix.encode(), parameters)
find = function("gguf_find_key", number, pointer, text)
u32 = function("gguf_get_val_u32", ctypes.c_uint32, pointer, number)
read = {
    "type": function("gguf_get_val_str", text, pointer, number)(file, find(file, b"general.type")).decode(),
    "dataset": function("gguf_get_arr_str", text, pointer, number, ctypes.c_size_t)(
        file, find(file, b"imatrix.datasets"), 0).decode(),
    "chunks": u32(file, find(file, b"imatrix.chunk_count")),
    "length": u32(file, find(file, b"imatrix.chunk_size")),
}
count = function("gguf_get_n_tensors", number, pointer)(file)
name_of = function("gguf_get_tensor_name", text, pointer, number)
tensor_of = function("ggml_get_tensor", pointer, pointer, text)
data_of = function("ggml_get_data_f32", ctypes.POINTER(ctypes.c_float), pointer)
size_of = function("ggml_nelements", number, pointer)
def values(name):
    tensor = tensor_of(context, name)
    return np.ctypeslib.as_array(data_of(tensor), (size_of(tensor),))
names = [name_of(file, i) for i in range(count)]
entries = {}
for name in names:
    if name.endswith(b".in_sum2"):
        plain = name[:-8]
        counts = values(plain + b".counts")
        entries[plain] = (values(name).reshape(len(counts), -1) / counts[:, None]).astype(np.float32).ravel()
read["entries"] = len(entries)
lines = []
@llama_cpp.llama_log_callback
def log(level, line, data):
    lines.append(line.decode())
llama_cpp.llama_log_set(log, None)
llama_cpp.llama_backend_init()
for mixture, file_type in file_types.items():
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    given = (type(params.imatrix)._type_ * (len(entries) + 1))()
    for slot, (name, each) in zip(given, entries.items()):
        slot.name, slot.size = name, each.size
        slot.data = each.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params.imatrix = given
    lines.clear()
    if llama_cpp.llama_model_quantize(model.encode(), f"{out}-{mixture}.gguf".encode(), ctypes.byref(params)):
        sys.exit("".join(lines))
    missed = [line for line in lines if "did not find weights" in line]
    read[f"{mixture} without"] = len(missed)
print(json.dumps(read))
"""


def with_importance(python: str) -> dict[str, object]:
    """What llama.cpp reads from the importance matrix, and the types and errors of what it quantises with it."""
    import quantize_cases as cases

    from localdiff.quantize.mixtures import MIXTURES

    file_types = {name: int(MIXTURES[name].file_type) for name in cases.WEIGHTED_MIXTURES}
    with tempfile.TemporaryDirectory() as folder:
        model, matrix, out = (str(Path(folder) / name) for name in ("model.gguf", "im.gguf", "out"))
        cases.write_weighted_case(Path(model), Path(matrix))
        command = [python, "-c", IMATRIX, model, matrix, out, json.dumps(file_types)]
        read = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        found: dict[str, object] = {"read": read}
        for mixture in file_types:
            types, error = cases.weighted_result(Path(model), Path(matrix), Path(f"{out}-{mixture}.gguf"))
            found[mixture] = {"types": cases.compact(types, mixture), "rmse": float(f"{error:.6g}")}
    return found


def write(parts: dict[str, dict[str, object]]) -> None:
    """One line per case and sample."""
    texts = [
        f"{json.dumps(part)}: {{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items()) + "\n}"
        for part, rows in parts.items()
    ]
    OUTPUT.write_text("{\n" + ",\n".join(texts) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with llama-cpp-python")
    parser.add_argument("--imatrix-only", action="store_true", help="renew this part and keep the others")
    args = parser.parse_args()
    if args.imatrix_only:
        write(json.loads(OUTPUT.read_text()) | {"imatrix": with_importance(args.python)})
        return
    if args.smollm2 is None:
        parser.error("--smollm2 FILE.gguf is needed for the errors on real weights")
    import numpy as np
    import quantize_cases as cases

    from localdiff.quantize.mixtures import MIXTURES

    file_types = json.dumps({name: int(MIXTURES[name].file_type) for name in cases.MIXTURE_NAMES})
    types = {}
    rmse: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases.CASES:
            model = Path(folder) / "model.gguf"
            cases.write_model(case, model)
            command = [args.python, "-c", TYPES, str(model), file_types]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            for each in found.values():
                assert each is None or set(each) == set(case.shapes), case.name
            folded = {
                name: each if each is None else cases.compact(each, name.removesuffix("+imatrix"))
                for name, each in found.items()
            }
            types[case.name] = {
                name: each
                for name, each in folded.items()
                if not name.endswith("+imatrix") or each != folded[name.removesuffix("+imatrix")]
            }

        samples = cases.samples() | cases.smollm2_samples(args.smollm2)
        given, encoded = Path(folder) / "given.npz", Path(folder) / "encoded.npz"
        arrays = {f"values {name}": pair[0] for name, pair in samples.items()}
        np.savez(given, **arrays, **{f"importance {name}": pair[1] for name, pair in samples.items()})
        kinds = ",".join(str(int(kind)) for kind in cases.ENCODED)
        subprocess.run([args.python, "-c", ENCODE, str(given), str(encoded), kinds], check=True, capture_output=True)
        blocks = np.load(encoded)
        for name, (values, importance) in samples.items():
            rmse[name] = {}
            for kind in cases.ENCODED:
                plain = cases.errors(blocks[f"{name}|{int(kind)}|0"], kind, values, importance)[0]
                weighted = cases.errors(blocks[f"{name}|{int(kind)}|1"], kind, values, importance)[1]
                rmse[name][kind.name] = [float(f"{plain:.6g}"), float(f"{weighted:.6g}")]
    write({"types": types, "rmse": rmse, "imatrix": with_importance(args.python)})


if __name__ == "__main__":
    main()
