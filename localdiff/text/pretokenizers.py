"""How byte-level BPE tokenizers cut text into words before merging: one row per way of cutting, with its names.

A row lists the regular expressions, applied one after the other; each cuts every word of the one before into its
matches and the text between them. The names are values of `tokenizer.ggml.pre`; several models share one row. The table
serves both directions: files with those names are read by it, and the converter finds the name of a tokenizer.json in
it. A name without a row is refused, because a wrong cut gives plausible but wrong token ids. Not here: merging (Rust,
in `tokenizers`) and the byte alphabet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # ByteLevel's own
DIGIT = r"\p{N}"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


@dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting text.

    names           values of `tokenizer.ggml.pre`; the converter writes the first
    patterns        regular expressions, applied in turn
    spellings       the same patterns as other writers of tokenizer.json spell them
    nfc             True: text is composed (Unicode NFC) before it is cut
    ignore_merges   True: a word that is a token as a whole is taken without merging
    add_bos         whether prompts begin with the bos token where the file does not say
    """

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    spellings: tuple[tuple[str, ...], ...] = ()
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


TABLE = (
    PreTokenizer(("default",), (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    PreTokenizer(
        (
            "gpt-2",
            "roberta-bpe",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-code",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "mpt",
            "jais",
            "trillion",
            "granite-docling",
        ),
        (GPT2,),
    ),
    PreTokenizer(("modern-bert", "olmo"), (GPT2,), nfc=True),
    PreTokenizer(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), (DIGIT, GPT2)
    ),
    PreTokenizer(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        (_LLAMA3,),
        ignore_merges=True,
        add_bos=True,
    ),
    PreTokenizer(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (_LLAMA3,)),
    PreTokenizer(("qwen2", "kormo", "f2llmv2"), (_QWEN2,), nfc=True),
    PreTokenizer(("deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "grok-2", "solar-open"), (_QWEN2,)),
    PreTokenizer(
        ("bailingmoe2", "bailingmoe", "llada-moe"),
        (rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_SYMBOLS}|\s*[\r\n]|\s+(?!\S)|\s+",),
        spellings=(
            (
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
                r"|\s+(?!\S)|\s+",
            ),
        ),
    ),
    PreTokenizer(
        ("seed-coder",),
        (rf"{_ENDINGS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",),
        spellings=((rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",),),
    ),
    PreTokenizer(
        ("tekken",),
        (rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_PATHS}|{_SPACES}",),
        ignore_merges=True,
        add_bos=True,
    ),
    PreTokenizer(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
        (rf"{_CASED[0]}{_ENDINGS}?|{_CASED[1]}{_ENDINGS}?|\p{{N}}{{1,3}}|{_PATHS}|{_SPACES}",),
    ),
    PreTokenizer(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
        (
            r"\p{N}{1,3}",
            r"[\x{4e00}-\x{9fa5}\x{3040}-\x{30ff}]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    PreTokenizer(
        ("deepseek-coder",),
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[\x{0800}-\x{9fa5}\x{ac00}-\x{d7ff}]+", DIGIT),
    ),
)

BY_NAME = {name: row for row in TABLE for name in row.names}


def find_row(patterns: Sequence[str], nfc: bool, ignore_merges: bool) -> PreTokenizer | None:
    """The row that cuts with exactly these patterns; of several the one that agrees most in the other two ways."""
    rows = [row for row in TABLE if tuple(patterns) in (row.patterns, *row.spellings)]
    return max(rows, key=lambda row: 2 * (row.nfc == nfc) + (row.ignore_merges == ignore_merges), default=None)
