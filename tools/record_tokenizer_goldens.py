"""Records token ids of llama.cpp for strings of many kinds into tests/data/tokenizer_goldens.json.

Usage: python tools/record_tokenizer_goldens.py --data FOLDER --smollm2 FILE.gguf [--python PYTHON_WITH_LLAMA_CPP]

Needs llama-cpp-python, in this interpreter or in the one named by --python; each file is tokenized in a process of its
own. The strings are made here from a fixed seed and stored beside the ids, so the tests need neither. Ids are those of
ordinary text: no bos, control tokens not parsed.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

KINDS = ("gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3", "bert-bge", "nomic-bert-moe")
# One name for each row of the table of pre-tokenizers, tried on the GPT-2 vocabulary.
PRE_TOKENIZERS = (
    "default", "gpt-2", "modern-bert", "smollm", "dbrx", "qwen2", "deepseek-r1-qwen", "bailingmoe", "seed-coder",
    "tekken", "gpt-4o", "deepseek-v3", "deepseek-coder",
)  # fmt: skip
PRE_STRINGS = 70  # of the random strings at the end, beside all that are written here
OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "tokenizer_goldens.json"

WRITTEN = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n \n",
    "\t\t x",
    "a\r\nb\r\n\r\n",
    "Hello, world!",
    " leading",
    "trailing ",
    "don't I'll we've HE'S they'D",
    "x = 3.14159e-10; y = 1_000_000",
    "1234567890 12 123 1234 12345",
    "٣٤٥ ½ ²³ Ⅷ 一二三",
    "    def f(x):\n        return x ** 2\n",
    "<|endoftext|>",
    "<|im_start|>user\nhi<|im_end|>",
    "<s>[INST] x [/INST]</s>",
    "<unk><0x0A><pad>",
    "<|begin_of_text|>a<|eot_id|>",
    "nul\x00byte",
    "bell\x07 esc\x1b[0m",
    "naïve café Ünïcödé",
    "e\u0301 n\u0303 combining",
    "Привет, как дела?",
    "你好，世界！今天天气很好。",
    "こんにちは、世界",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 🇩🇪",
    "🦙🦙 🚀🚀🚀",
    "\u00a0nbsp\u2003em\u3000wide",
    "zero\u200bwidth\u200djoin",
    "\ufeffbom",
    "\ufffd\uffff",
    "math 𝒳𝓎𝔷 ∑∫√≠",
    "!!!???...---***",
    "a" * 70,
    "https://example.org/a/b?c=d&e=%20#f",
    '{"key": [1, 2, {"x": null}]}',
    '<div class="a">&amp;</div>',
    "--flag=value -x ./path/to/file.txt",
    "snake_case camelCase PascalCase kebab-case",
    "$100.00 €5 £3 ¥8",
    "C:\\Users\\me\\file",
    "`code` **bold** _it_ # h1\n- item\n\n\n1. one",
    "word" * 20,
    "ab " * 30,
    "\n" * 17,
    " " * 33 + "x",
    "\t" * 9,
    " \n \n  \n\t\n",
    "...\n\n...",
    "a.b.c,d;e:f!g?h",
    "''' \"\"\" `` ''",
    "'tis 'TWAS 'Ll",
]
WORDS = (
    "the cat sat on a mat and then it was running quickly through seventeen gardens because yesterday nobody had been "
    "watching over internationalization tests for tokenizers while London bridges fell Zürich Straße façade 2024 42"
)
GAPS = (" ", " ", " ", ", ", ".\n", "  ", "-", "")
RANGES = ((32, 126), (32, 126), (9, 13), (0xA1, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A),
          (0x905, 0x939), (0xE01, 0xE30), (0x3041, 0x3096), (0x4E00, 0x9FA0), (0xAC00, 0xD7A3), (0x2010, 0x2027),
          (0x2200, 0x22FF), (0x1F300, 0x1F64F))  # fmt: skip

CHILD = """
import json, sys, llama_cpp
path, pre = sys.argv[1:3]
model = llama_cpp.Llama(path, vocab_only=True, verbose=False, kv_overrides={"tokenizer.ggml.pre": pre} if pre else None)
ids = [model.tokenize(text.encode(), add_bos=False, special=False) for text in json.load(sys.stdin)]
json.dump({"version": llama_cpp.__version__, "ids": ids}, sys.stdout)
"""


def strings() -> list[str]:
    """The strings, always the same ones."""
    draw = random.Random(7)
    made = list(WRITTEN)
    for _ in range(80):
        made.append("".join(draw.choice(WORDS.split()) + draw.choice(GAPS) for _ in range(9)))
    for _ in range(60):
        made.append("".join(chr(draw.randint(*draw.choice(RANGES))) for _ in range(draw.randint(1, 24))))
    for _ in range(30):
        made.append("".join(draw.choice(" \n\t'a1.Z漢é<|>") for _ in range(draw.randint(1, 30))))
    return made


def tokenize(python: str, path: Path, texts: list[str], pre: str = "") -> dict[str, object]:
    """What llama.cpp makes of `texts`, with the pre-tokenizer named by `pre` in place of the file's own."""
    done = subprocess.run(
        [python, "-c", CHILD, str(path), pre], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with tokenizers/ggml-vocab-*.gguf")
    parser.add_argument("--smollm2", type=Path, required=True, help="a GGUF file of SmolLM2")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has llama-cpp-python")
    options = parser.parse_args()
    texts = strings()
    vocab = {kind: options.data / "tokenizers" / f"ggml-vocab-{kind}.gguf" for kind in KINDS}
    answers = {kind: tokenize(options.python, path, texts) for kind, path in vocab.items()}
    answers["smollm2"] = tokenize(options.python, options.smollm2, texts)
    cut = [*WRITTEN, *texts[-PRE_STRINGS:]]
    rows = {pre: tokenize(options.python, vocab["gpt-2"], cut, pre)["ids"] for pre in PRE_TOKENIZERS}
    record = {
        "llama_cpp_python": answers["smollm2"]["version"],
        "texts": texts,
        "pre_texts": cut,
        "files": {name: answer["ids"] for name, answer in answers.items()},
        "pre_tokenizers": rows,
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(record, separators=(",", ":")).replace('],"', '],\n"') + "\n")


if __name__ == "__main__":
    main()
