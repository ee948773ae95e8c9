"""The published algorithms once more: plain, slow, one position at a time, written from the formulas.

Each reference is a generator over lists: it is given an Oracle to ask, the tokens, which positions are masked and the
settings, changes the two lists in place and yields after each forward pass. They share nothing with localdiff.decode
but the source of random numbers. With an equal score the leftmost position counts as surer, as Python's sort is stable.
"""
# ruff: noqa: B023 - what is defined in a loop is used up in the same turn

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from fake import Logits, distribution, draw, softmax, without_forbidden

from localdiff.decode.decoder import uniform
from localdiff.decode.loop import Job
from localdiff.decode.table import Settings
from localdiff.engine import Request

State = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Answer:
    """Of one position: token, its probability p, and the distribution that p is from."""

    token: int
    p: float
    probabilities: np.ndarray

    @property
    def entropy(self) -> float:
        return float(np.float32(-sum(p * math.log(p) for p in self.probabilities if p > 0)))

    @property
    def margin(self) -> float:
        first, second = sorted(self.probabilities, reverse=True)[:2]
        return float(np.float32(first - second))


class Oracle:
    """The fake model as a function of a position."""

    def __init__(self, job: Job, logits: Logits, vocab: int) -> None:
        self.job, self.logits, self.vocab = job, logits, vocab
        self.mask = job.canvas.mask_token
        self.forbidden = set(job.forbidden.tolist())

    def ask(
        self, x: list[int], step: int, sampled: bool = True, temperature: float | None = None,
        forbidden: set[int] | None = None,
    ) -> Callable[[int], Answer]:  # fmt: skip
        chosen = self.job.settings
        request = Request(
            np.array(x, np.int32), np.arange(len(x)), seed=self.job.seed, step=step,
            temperature=chosen.temperature if temperature is None else temperature, top_k=chosen.top_k,
            top_p=chosen.top_p,
            forbidden=np.array(sorted(self.forbidden | (forbidden or set())), np.int32),
        )  # fmt: skip
        rows = self.logits(request)
        shift = 1 if self.job.logit_shift else 0
        known: dict[int, Answer] = {}

        def answer(i: int) -> Answer:
            if i not in known:
                row = rows[max(0, i - shift)]
                token, raw, drawn = draw(row, request, i)
                tempered = sampled and request.temperature > 0
                allowed = without_forbidden(row, request)
                scores = distribution(allowed, request) if tempered else softmax(allowed)
                known[i] = Answer(token, float(np.float32(drawn if tempered else raw)), scores)
            return known[i]

        return answer

    def uniform(self, step: int, i: int) -> float:
        return float(uniform(self.job.seed, step, np.array([i], np.int32))[0])

    def gumbel(self, step: int, i: int) -> float:
        return -math.log(-math.log(self.uniform(step, i)))

    def noise(self, step: int, i: int) -> int:
        allowed = [token for token in range(self.vocab) if token not in self.forbidden]
        return allowed[int(self.uniform(step, i) * len(allowed))]


def best(positions: list[int], score: Callable[[int], float], count: int) -> list[int]:
    return sorted(positions, key=lambda i: -score(i))[:count]


def where(masked: list[bool]) -> list[int]:
    return [i for i, unknown in enumerate(masked) if unknown]


def cut(holes: list[int], s: Settings) -> list[list[int]]:
    size = s.block_length
    assert size is not None
    if s.aligned:
        return [[i for i in holes if i // size == n] for n in sorted({i // size for i in holes})]
    return [holes[n : n + size] for n in range(0, len(holes), size)]


def write(x: list[int], masked: list[bool], a: Callable[[int], Answer], chosen: list[int]) -> State:
    for i in chosen:
        x[i], masked[i] = a(i).token, False
    return list(x), list(masked)


def score_of(a: Callable[[int], Answer], order: str | None) -> Callable[[int], float]:
    if order == "entropy":
        return lambda i: -a(i).entropy
    return (lambda i: a(i).margin) if order == "margin" else (lambda i: a(i).p)


def random_keep(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    a = None
    for t in range(s.steps, 0, -1):
        if a is not None:  # x_0 of the pass before is revealed with chance 1 / (t + 1)
            step = s.steps - t
            yield write(x, masked, a, [i for i in where(masked) if o.uniform(step, i) < 1 / (t + 1)])
            if not any(masked):
                return
        a = o.ask(x, s.steps - t + 1)
    yield write(x, masked, a, where(masked))


def topk(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    holes = where(masked)
    for t in range(s.steps - 1, -1, -1):
        a = o.ask(x, s.steps - t)
        k = math.floor(len(holes) * t / s.steps)
        ranked = sorted([math.log(max(a(i).p, 1e-45)) for i in holes] + [1000.0] * (len(x) - len(holes)))
        yield write(x, masked, a, [i for i in where(masked) if not math.log(max(a(i).p, 1e-45)) < ranked[k]])
        if not any(masked):
            return


def threshold(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    for block in cut(where(masked), s):
        while unknown := [i for i in block if masked[i]]:
            step += 1
            a = o.ask(x, step, sampled=False)
            surest = best(unknown, lambda i: a(i).p, 1)[0]
            yield write(x, masked, a, [i for i in unknown if i == surest or a(i).p >= np.float32(s.threshold)])


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


def dream(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    times = np.linspace(1, 1e-3, s.steps + 1)
    for step in range(1, s.steps + 1):
        if not any(masked):
            return
        last, chance = step == s.steps, 1 - times[step] / times[step - 1]
        a, unknown = o.ask(x, step), where(masked)
        if s.order == "random":
            chosen = [i for i in unknown if last or o.uniform(step, i) < chance]
        else:
            plain = score_of(a, s.order)
            score = plain
            if s.order_temperature:
                score = lambda i: plain(i) / s.order_temperature + o.gumbel(step, i)  # noqa: E731
            chosen = best(unknown, score, len(unknown) if last else int(len(unknown) * chance))
        yield write(x, masked, a, chosen)


def factor(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    for block in cut(where(masked), s):
        while unknown := [i for i in block if masked[i]]:
            step += 1
            a = o.ask(x, step, sampled=False)
            ranked = best(unknown, lambda i: a(i).p, len(unknown))
            fits = [n for n in range(1, len(ranked) + 1) if (n + 1) * (1 - a(ranked[n - 1]).p) < s.factor]
            yield write(x, masked, a, ranked[: max(fits, default=1)])


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


def rdm(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    holes = where(masked)
    had = dict.fromkeys(holes, -math.inf)
    for step in range(1, s.steps + 1):
        u = step / s.steps
        rate = 0.0 if step == s.steps else 1 - u if s.schedule == "linear" else math.cos(math.pi / 2 * u)
        a = o.ask(x, step, sampled=False)
        cs = {i: math.log(max(a(i).p, 1e-30)) for i in holes}
        spread = s.order_temperature * rate
        ranking = {i: cs[i] + (spread * o.gumbel(step, i) if spread else 0) for i in holes}
        bar = sorted(ranking.values())[math.floor(len(holes) * rate)]
        for i in holes:
            low = ranking[i] < bar
            if masked[i] and not low:
                x[i], masked[i], had[i] = a(i).token, False, cs[i]
            elif not masked[i] and low and (s.remask == "uncond" or (a(i).token == x[i] and cs[i] < had[i])):
                x[i], masked[i], had[i] = o.mask, True, -math.inf
        yield list(x), list(masked)


def p2(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    holes = where(masked)
    for i in range(s.steps):
        a = o.ask(x, i + 1)
        count = len(holes) * (s.steps - i - 1) // s.steps
        low = sorted(holes, key=lambda j: a(j).p)[:count]
        for j in holes:
            if j in low:
                x[j], masked[j] = o.mask, True
            elif masked[j]:
                x[j], masked[j] = a(j).token, False
        yield list(x), list(masked)


def mdlm(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    passes, answers = 0, None
    for time in range(1, s.steps + 1):
        if not any(masked):
            return
        if answers is None:
            passes += 1
            answers = o.ask(x, passes)
        t, after = 1 - (time - 1) / s.steps, 1 - time / s.steps
        chosen = [i for i in where(masked) if time == s.steps or o.uniform(time, i) < 1 - after / t]
        if chosen:
            yield write(x, masked, answers, chosen)
            answers = None


def rnd1(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    total, step = sum(masked), 0
    while any(masked):
        step += 1
        a, unknown = o.ask(x, step, sampled=False), where(masked)
        if s.entropy_bound is not None:
            yield write(x, masked, a, within(unknown, lambda i: a(i).p, a, s.entropy_bound))
            continue
        stay = math.floor(total * (s.steps - step) / s.steps + 1e-9)
        yield write(x, masked, a, best(unknown, lambda i: -a(i).entropy, max(0, len(unknown) - stay)))


def within(unknown: list[int], score: Callable[[int], float], a: Callable[[int], Answer], bound: float) -> list[int]:
    ranked = best(unknown, score, len(unknown))
    fits = [1]
    for n in range(1, len(ranked) + 1):
        entropies = [a(i).entropy for i in ranked[:n]]
        if sum(entropies) - max(entropies) <= bound:
            fits.append(n)
    return ranked[: max(fits)]


def eb_sampler(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    while any(masked):
        step += 1
        a = o.ask(x, step, sampled=False)
        yield write(x, masked, a, within(where(masked), score_of(a, s.order), a, s.entropy_bound))


def entropy_bound(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    holes = where(masked)
    for i in holes:
        x[i] = o.noise(0, i)
    before: list[int] = []
    for step in range(1, s.steps + 1):
        temperature = s.temperature + (s.end_temperature - s.temperature) * (step - 1) / max(1, s.steps - 1)
        a = o.ask(x, step, temperature=temperature)
        likeliest = [int(np.argmax(a(i).probabilities)) for i in holes]
        done = likeliest == before and sum(a(i).entropy for i in holes) / len(holes) < 0.005
        if done or step == s.steps:
            for i, token in zip(holes, likeliest, strict=True):
                x[i], masked[i] = token, False
            yield list(x), list(masked)
            return
        accepted = within(holes, lambda i: -a(i).entropy, a, s.entropy_bound)
        for i in holes:
            masked[i] = i not in accepted
            x[i] = o.noise(step, i) if masked[i] else a(i).token
        before = likeliest
        yield list(x), list(masked)


def dreamon(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    facts, budget, step = o.job.decoder.facts, s.expansions, 0
    while any(masked):
        step += 1
        a = o.ask(x, step, forbidden=set() if budget > 0 and len(x) < facts.canvas_limit else {facts.expand_token})
        (i,) = best(where(masked), score_of(a, s.order), 1)
        if a(i).token == facts.expand_token:
            x[i : i + 1], masked[i : i + 1] = [o.mask, o.mask], [True, True]
            budget -= 1
        elif a(i).token == facts.delete_token:
            del x[i], masked[i]
        else:
            x[i], masked[i] = a(i).token, False
        yield list(x), list(masked)


def wedlm(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    step = 0
    while any(masked):
        step += 1
        order = [i for i in range(len(x)) if not masked[i]] + where(masked)
        read = o.ask([x[i] for i in order], step)
        window = where(masked)[: s.block_length]
        a = lambda i: read(order.index(i))  # noqa: E731
        doubt = {i: a(i).entropy + s.distance_penalty * (i - window[0]) for i in window}
        chosen = [i for i in window if doubt[i] < s.entropy_bound] or [min(window, key=lambda i: doubt[i])]
        yield write(x, masked, a, chosen)


def remdm(o: Oracle, x: list[int], masked: list[bool], s: Settings) -> Iterator[State]:
    holes, had = where(masked), {}

    def alpha(t: float) -> float:
        if s.remask != "loop":
            return 1 - t
        if t > 0.55:
            return 0.9 * (1 - t) / 0.45
        return 0.9 if t > 0.05 else 1 - 0.1 * t / 0.05

    for step in range(1, s.steps + 1):
        a_t, a_s = alpha((s.steps - step + 1) / s.steps), alpha((s.steps - step) / s.steps)
        most = min(1.0, (1 - a_s) / a_t) if a_t else 1.0
        a = o.ask(x, step)
        written = [i for i in holes if not masked[i]]
        if s.remask == "confidence":
            total = sum(math.exp(-had[i]) for i in written)
            sigma, of_masks = {i: most * math.exp(-had[i]) / total for i in written}, 0.0
        else:
            of_masks = {"cap": min(s.remask_rate, most), "rescale": s.remask_rate * most,
                        "loop": min(s.remask_rate, most) if a_t == a_s else 0.0}[s.remask]  # fmt: skip
            sigma = dict.fromkeys(written, of_masks)
        chance = 1.0 if step == s.steps else (a_s - (1 - of_masks) * a_t) / (1 - a_t)
        for i in holes:
            u = o.uniform(step, i)
            if not masked[i] and u < sigma[i]:
                x[i], masked[i] = o.mask, True
            elif masked[i] and u < chance:
                x[i], masked[i], had[i] = a(i).token, False, a(i).p
        yield list(x), list(masked)


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


REFERENCES = {
    "random-keep": random_keep, "topk": topk, "threshold": threshold, "slowfast": slowfast, "pc-sampler": pc_sampler,
    "dream": dream, "factor": factor, "sdar": sdar, "llada2": llada2, "llada2.1": llada2, "rdm": rdm, "p2": p2,
    "mdlm": mdlm, "rnd1": rnd1, "eb-sampler": eb_sampler, "entropy-bound": entropy_bound, "dreamon": dreamon,
    "wedlm": wedlm, "remdm": remdm, "klass": klass, "localleap": localleap, "llada": llada, "prophet": prophet,
    "hierarchical": hierarchical, "credit": credit, "adablock": adablock, "daedal": daedal,
}  # fmt: skip
