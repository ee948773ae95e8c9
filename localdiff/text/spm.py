"""SentencePiece-BPE encoding: pieces with scores, byte fallback.

The text is a chain of characters; the neighbouring pair whose concatenation is the piece with the highest score is
merged, the leftmost first where scores are equal, until no pair is a piece. A heap makes that O(n log n). Merge ranks
cannot express it, since ties between different pairs are settled by place; so this is written out instead of given to
`tokenizers`. Not here: special tokens, the added space, and the escaping of spaces are the caller's.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

_CACHED_CHARS = 64  # longer chunks hardly ever repeat
_CACHED_CHUNKS = 65_536


class SpmEncoder:
    """Encodes text, spaces already written as U+2581.

    pieces       text -> (score, id) of the pieces that merging may form
    byte_ids     id of the piece for each of the 256 byte values, -1 where the vocabulary has none
    unknown_id   id for what no byte piece covers, None: such bytes are left out
    """

    def __init__(self, pieces: dict[str, tuple[float, int]], byte_ids: Sequence[int], unknown_id: int | None) -> None:
        self._pieces = pieces
        self._byte_ids = byte_ids
        self._unknown_id = unknown_id
        # A merge across two characters needs a piece that holds both side by side, so text is cut, with the same
        # result, wherever no piece does: nearly always at least before every space.
        self._joints = {text[i : i + 2] for text in pieces for i in range(len(text) - 1)}
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = []
        joints = self._joints
        start = 0
        cuts = [i for i, pair in enumerate(zip(text, text[1:], strict=False), 1) if pair[0] + pair[1] not in joints]
        for end in (*cuts, len(text)):
            chunk = text[start:end]
            start = end
            if len(chunk) > _CACHED_CHARS:
                ids += self._merge(chunk)
                continue
            found = self._cache.get(chunk)
            if found is None:
                if len(self._cache) >= _CACHED_CHUNKS:
                    self._cache.clear()
                found = self._cache[chunk] = self._merge(chunk)
            ids += found
        return ids

    def _merge(self, chunk: str) -> list[int]:
        pieces = self._pieces
        symbols = list(chunk)  # "" once merged into the symbol on its left
        count = len(symbols)
        following = list(range(1, count + 1))
        preceding = list(range(-1, count - 1))
        heap: list[tuple[float, int, int, int]] = []  # (-score, left, right, characters of the pair)
        for left in range(count - 1):
            entry = pieces.get(symbols[left] + symbols[left + 1])
            if entry is not None:
                heap.append((-entry[0], left, left + 1, 2))
        heapify(heap)
        while heap:
            _, left, right, size = heappop(heap)
            # Symbols only grow, so an entry is out of date exactly where one side is gone or has another length.
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != size:
                continue
            merged = symbols[left] = symbols[left] + symbols[right]
            symbols[right] = ""
            after = following[left] = following[right]
            if after < count:
                preceding[after] = left
                entry = pieces.get(merged + symbols[after])
                if entry is not None:
                    heappush(heap, (-entry[0], left, after, size + len(symbols[after])))
            before = preceding[left]
            if before >= 0:
                entry = pieces.get(symbols[before] + merged)
                if entry is not None:
                    heappush(heap, (-entry[0], before, left, size + len(symbols[before])))
        ids: list[int] = []
        for symbol in symbols:
            if symbol:
                entry = pieces.get(symbol)
                ids += [entry[1]] if entry is not None else self._spell(symbol)
        return ids

    def _spell(self, symbol: str) -> list[int]:
        ids = [self._byte_ids[byte] for byte in symbol.encode()]
        if min(ids) >= 0:
            return ids
        return [] if self._unknown_id is None else [self._unknown_id]
