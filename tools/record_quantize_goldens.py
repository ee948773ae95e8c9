"""Records llama.cpp's quantiser into tests/goldens/quantize.json: the type it gives each tensor, and its errors.

Usage: python tools/record_quantize_goldens.py --smollm2 FILE.gguf --python PYTHON_WITH_LLAMA_CPP

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with llama-cpp-python")
    args = parser.parse_args()
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
    # one line per case and sample
    parts = [
        f"{json.dumps(part)}: {{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items()) + "\n}"
        for part, rows in (("types", types), ("rmse", rmse))
    ]
    OUTPUT.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main()
