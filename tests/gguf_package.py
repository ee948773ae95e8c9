"""Ask the gguf package about files: one path per line on stdin, one answer per line on stdout.

An answer is the numbers of key-values and tensors, or "refused". A file of some kilobytes that the package spends more
than a second of processor time on ends the program: the caller sees that its answer is missing. Memory is limited too.
"""

import resource
import signal
import sys
import warnings

from gguf import GGUFReader

SECONDS = 1
BYTES = 8 << 30


def answer(path: str) -> str:
    try:
        reader = GGUFReader(path)
    except Exception:  # whatever a damaged file makes of it
        return "refused"
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    return f"{len(keys)} {len(reader.tensors)}"


def main() -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        print(answer(line.rstrip("\n")), flush=True)


if __name__ == "__main__":
    main()
