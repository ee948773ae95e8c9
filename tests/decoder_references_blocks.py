"""The algorithms that denoise block after block; see decoder_references.py."""
# ruff: noqa: B023 - what is defined in a loop is used up in the same turn

import math
from collections.abc import Callable, Iterator

import numpy as np
from decoder_oracle import Answer, Oracle, State, best, cut, where, write

from localdiff.decode.table import Settings


def threshold(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    for block in cut(where(masked), s):
        while unknown := [i for i in block if masked[i]]:
            step += 1
            a = o.ask(x, step, sampled=False)
            surest = best(unknown, lambda i: a(i).p, 1)[0]
            yield write(x, masked, a, [i for i in unknown if i == surest or a(i).p >= np.float32(s.threshold)])


def factor(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    for block in cut(where(masked), s):
        while unknown := [i for i in block if masked[i]]:
            step += 1
            a = o.ask(x, step, sampled=False)
            ranked = best(unknown, lambda i: a(i).p, len(unknown))
            fits = [n for n in range(1, len(ranked) + 1) if (n + 1) * (1 - a(ranked[n - 1]).p) < s.factor]
            yield write(x, masked, a, ranked[: max(fits, default=1)])


def spread(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    for block in cut(where(masked), s):
        steps = max(1, round(len(block) / s.pace))
        while unknown := [i for i in block if masked[i]]:
            step += 1
            a, gone, number = o.ask(x, step), 0, 0
            share = [len(block) // steps + (k < len(block) % steps) for k in range(len(block))]
            while gone < len(block) - len(unknown):  # where that many are written the next step begins
                gone, number = gone + share[number], number + 1

            def score(i: int) -> float:
                value = a(i).p
                for j in picked:
                    value *= (1 - 0.7 ** abs(i - j)) * (0.7 if a(i).token == a(j).token else 1)
                return value

            picked: list[int] = []
            while len(picked) < min(share[number], len(unknown)):
                picked += best([i for i in unknown if i not in picked], score, 1)
            yield write(x, masked, a, [i for i in unknown if i in picked or a(i).p > s.threshold])


def slowfast(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    for block in cut(where(masked), s):
        start = 0
        while any(masked[i] for i in block):
            ends: list[int] = []
            end = None
            while end is None or any(masked[i] for i in block[start:end]):
                unknown = [i for i in block[start:end] if masked[i]]
                if not unknown:  # the slow phase has written all there is
                    break
                step += 1
                a = o.ask(x, step, sampled=False)
                if end is None:
                    likely = [
                        n for n, i in enumerate(block) if i in unknown and a(i).p >= np.float32(s.relaxed_threshold)
                    ]
                    ends.append(max(likely, default=start) + 1)
                    if len(ends) >= 2 and abs(ends[-1] - ends[-2]) / 2 < 1:  # the deviation of two numbers
                        end = ends[-1]
                    elif len(ends) == 6:
                        end = (ends[-1] + ends[-2]) // 2
                sure = [i for i in unknown if a(i).p >= np.float32(s.threshold)]
                yield write(x, masked, a, sure if len(sure) > 1 else best(unknown, lambda i: a(i).p, 1))
            start = end or len(block)


def sdar(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step, size = 0, s.block_length
    per_block = s.steps_per_block or size
    for block in cut(where(masked), s):
        i = -1
        while unknown := [j for j in block if masked[j]]:
            step, i = step + 1, i + 1
            n = size // per_block + (i < size % per_block)
            a = o.ask(x, step)
            sure = [j for j in unknown if a(j).p > s.threshold]
            if s.order == "sequential":
                chosen = unknown[:n]
            elif s.order == "static" or (s.order == "dynamic" and len(sure) < n):
                chosen = best(unknown, lambda j: a(j).p, n)
            elif s.order == "dynamic":
                chosen = sure
            else:
                ranked = best(unknown, lambda j: -a(j).entropy, len(unknown))
                sums = [sum(a(k).entropy for k in ranked[: m + 1]) for m in range(len(ranked))]
                chosen = [j for m, j in enumerate(ranked) if sums[m] < s.entropy_bound] or ranked[:1]
            yield write(x, masked, a, chosen)


def llada2(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    for block in cut(where(masked), s):
        looks = 0
        while True:
            unknown = [i for i in block if masked[i]]
            step += 1
            a = o.ask(x, step)
            sure = [i for i in unknown if a(i).p > s.threshold]
            chosen = sure or best(unknown, lambda i: a(i).p, 1)
            edits = []
            if s.edit_threshold is not None:
                edits = [i for i in block if i not in unknown and a(i).token != x[i] and a(i).p > s.edit_threshold]
            yield write(x, masked, a, chosen + edits)
            if any(masked[i] for i in block):
                continue
            if s.edit_threshold is None or (not unknown and not edits):
                break
            looks += not unknown
            if looks >= s.edit_steps:
                break


def llada(
    o: Oracle, x: list[int], masked: list[bool], s: Settings, early: Callable[..., bool] = lambda *_: False,
    score_for: Callable[..., Callable[[int], float]] | None = None,
) -> Iterator[State]:  # fmt: skip
    step, parts = 0, cut(where(masked), s)
    for number, block in enumerate(parts):
        steps = s.steps // len(parts) + (number < s.steps % len(parts))
        for i in range(steps):
            unknown = [j for j in block if masked[j]]
            if not unknown:
                break
            step += 1
            never = set(o.job.decoder.facts.stop_tokens) if s.end_token == "never" else set()
            a = o.ask(x, step, sampled=False, forbidden=never)
            if early(a, where(masked), step):
                yield write(x, masked, a, where(masked))
                return
            count = len(block) // steps + (i < len(block) % steps)
            plain = (lambda j: o.uniform(step, j)) if s.order == "random" else lambda j: a(j).p
            if score_for is not None:
                plain = score_for(a, block)
            late = o.job.decoder.facts.stop_tokens if s.end_token == "last" else ()
            score = lambda j: -math.inf if a(j).token in late else plain(j)  # noqa: E731
            yield write(x, masked, a, best(unknown, score, count))


def prophet(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    def early(a: Callable[[int], Answer], unknown: list[int], step: int) -> bool:
        gaps = []
        for i in unknown:
            first, second = sorted(a(i).probabilities, reverse=True)[:2]
            gaps.append(math.log(first) - math.log(second))
        progress = step / s.steps
        return sum(gaps) / len(gaps) >= (7.5 if progress <= 1 / 3 else 5.0 if progress <= 2 / 3 else 2.5)

    return llada(o, x, masked, s, early)


def pc_sampler(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    q = o.job.decoder.facts.background

    def score_for(a: Callable[[int], Answer], block: list[int]) -> Callable[[int], float]:
        def tells(i: int) -> float:
            return min(10.0, -a(i).p * math.log(float(q[a(i).token]) + 1e-9))

        return lambda i: math.exp(-s.position_decay * block.index(i)) * tells(i)

    return llada(o, x, masked, s, score_for=score_for)


def klass(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    for block in cut(where(masked), s):
        seen: dict[int, list[np.ndarray]] = {i: [] for i in block}
        while unknown := [i for i in block if masked[i]]:
            step += 1
            a = o.ask(x, step, sampled=False)
            for i in unknown:
                seen[i].append(a(i).probabilities)

            def rested(i: int) -> bool:
                last = seen[i][-3:]
                moves = [sum(p * math.log(p / q) for p, q in zip(now, old, strict=True) if p > 0)
                         for old, now in zip(last, last[1:], strict=False)]  # fmt: skip
                return len(moves) == 2 and max(moves) < s.divergence

            chosen = [i for i in unknown if a(i).p > s.threshold and rested(i)]
            yield write(x, masked, a, chosen or best(unknown, lambda i: a(i).p, 1))


def localleap(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    for block in cut(where(masked), s):
        while unknown := [i for i in block if masked[i]]:
            step += 1
            a = o.ask(x, step, sampled=False)
            anchors = [i for i in unknown if a(i).p >= s.threshold]
            near = [i for i in unknown if any(abs(i - j) <= s.radius for j in anchors)]
            chosen = sorted({*anchors, *(i for i in near if a(i).p >= s.relaxed_threshold)})
            yield write(x, masked, a, chosen or best(unknown, lambda i: a(i).p, 1))


def hierarchical(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    for block in cut(where(masked), s):
        while unknown := [i for i in block if masked[i]]:
            step += 1
            a = o.ask(x, step, sampled=False)
            chosen = {i for i in unknown if a(i).p > s.threshold}
            for i in unknown:
                if i - 1 not in unknown:  # a gap begins
                    gap = [j for j in unknown if all(k in unknown for k in range(i, j + 1)) and j >= i]
                    chosen |= {j for j in best(gap, lambda k: a(k).p, 1) if a(j).p > s.relaxed_threshold}
            yield write(x, masked, a, sorted(chosen or best(unknown, lambda i: a(i).p, 1)))


def credit(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    for block in cut(where(masked), s):
        credits = {i: np.zeros(o.vocab) for i in block}
        while unknown := [i for i in block if masked[i]]:
            step += 1
            a = o.ask(x, step, sampled=False)
            token, trusted = {}, {}
            for i in unknown:
                p = a(i).probabilities
                credits[i] *= 0.8
                credits[i][np.argmax(p)] += p.max() ** 0.2
                fused = p * (1 + credits[i]) ** 0.7
                fused /= fused.sum()
                token[i] = int(np.argmax(fused)) if s.temperature == 0 else a(i).token
                trusted[i] = fused[token[i]]
            chosen = [i for i in unknown if trusted[i] >= s.threshold]
            for i in chosen or best(unknown, lambda i: trusted[i], 1):
                x[i], masked[i] = token[i], False
            yield list(x), list(masked)


def adablock(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    holes, step = where(masked), 0
    while any(masked):
        start = holes.index(where(masked)[0])
        end = None
        while end is None or any(masked[i] for i in holes[start:end]):
            step += 1
            a = o.ask(x, step, sampled=False)
            if end is None:
                window = [i for i in holes[start : start + max(1, len(holes) // 4)] if masked[i]]
                lines = [i for i in window if a(i).token == o.job.decoder.facts.line_end]
                end = start + s.block_length
                if lines and a(best(lines, lambda i: a(i).p, 1)[0]).p >= s.delimiter_threshold:
                    end = holes.index(best(lines, lambda i: a(i).p, 1)[0]) + 1
            unknown = [i for i in holes[start:end] if masked[i]]
            chosen = [i for i in unknown if a(i).p >= s.threshold]
            yield write(x, masked, a, chosen or best(unknown, lambda i: a(i).p, 1))


def daedal(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    facts, step, grown, growing = o.job.decoder.facts, 0, 0, True
    free = [hole or False for hole in masked]  # which positions are not given; grows with x

    def grow(i: int, by: int) -> None:
        x[i + 1 : i + 1], masked[i + 1 : i + 1], free[i + 1 : i + 1] = [o.mask] * by, [True] * by, [True] * by

    while any(masked):
        step += 1
        a = o.ask(x, step, sampled=False)
        holes = where(free)
        ends = [a(i).p for i in holes if a(i).token in facts.stop_tokens][-32:]
        finished = sum(ends) / 32
        space = facts.canvas_limit - len(x) if grown < s.expansions else 0
        if growing and finished < 0.5 and space > 0:
            grow(holes[-1], min(8, space))
            grown += 1
            yield list(x), list(masked)
            continue
        growing = False
        unknown = next(u for u in ([i for i in b if masked[i]] for b in cut(holes, s)) if u)
        chosen = [i for i in unknown if a(i).p > s.threshold] or best(unknown, lambda i: a(i).p, 1)
        unsure = [i for i in unknown if i not in chosen and a(i).p < s.relaxed_threshold]
        write(x, masked, a, chosen)
        if finished < 0.9 and space > 0 and unsure:
            grow(min(unsure, key=lambda i: a(i).p), min(7, space))
            grown += 1
        yield list(x), list(masked)


def wino(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    for block in cut(where(masked), s):
        last = 30
        while unknown := [i for i in block if masked[i]]:
            step += 1
            written = [i for i in block if not masked[i]]
            # a model that sees blocks is shown nothing behind the one that is verified
            shown = x[: (block[-1] // s.block_length + 1) * s.block_length] if s.aligned and written else x
            a = o.ask(shown, step, sampled=False)
            verified = {i: o.unseen(shown, step, i) for i in written}
            sure = [i for i in unknown if a(i).p > np.float32(s.threshold)] or best(unknown, lambda i: a(i).p, 1)
            chosen = best(sure, lambda i: a(i).p, min(max(int(0.7 * len(unknown)), 5), 20))
            doubtful = [i for i in written if verified[i] < np.float32(s.verify_threshold)] if len(chosen) > 1 else []
            if len(doubtful) >= last:
                doubtful = sorted(written, key=lambda i: verified[i])[: last - 1]
            write(x, masked, a, chosen)
            for i in doubtful:
                x[i], masked[i] = o.mask, True
            last = len(chosen)
            yield list(x), list(masked)
