"""The published algorithms once more: plain, slow, one position at a time, written from the formulas.

Each reference is a generator over lists: it is given an Oracle to ask, the tokens, which positions are masked and the
settings, changes the two lists in place and yields after each forward pass. They share nothing with localdiff.decode
but the source of random numbers. Here those that look at the whole canvas; decoder_references_blocks.py has the others.
"""
# ruff: noqa: B023 - what is defined in a loop is used up in the same turn

import math
from collections.abc import Callable, Iterator

import numpy as np
from decoder_oracle import Answer, Oracle, State, best, score_of, where, write
from decoder_references_blocks import (
    adablock,
    credit,
    daedal,
    factor,
    hierarchical,
    klass,
    llada,
    llada2,
    localleap,
    pc_sampler,
    prophet,
    sdar,
    slowfast,
    spread,
    threshold,
    wino,
)  # fmt: skip

from localdiff.decode.table import Settings


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
        temperature = s.temperature + (s.end_temperature - s.temperature) * (step - 1) / s.steps
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


REFERENCES = {
    "random-keep": random_keep, "topk": topk, "threshold": threshold, "slowfast": slowfast, "spread": spread,
    "pc-sampler": pc_sampler,
    "dream": dream, "factor": factor, "sdar": sdar, "llada2": llada2, "llada2.1": llada2, "rdm": rdm, "p2": p2,
    "mdlm": mdlm, "rnd1": rnd1, "eb-sampler": eb_sampler, "entropy-bound": entropy_bound, "dreamon": dreamon,
    "wedlm": wedlm, "remdm": remdm, "klass": klass, "localleap": localleap, "llada": llada, "prophet": prophet,
    "hierarchical": hierarchical, "credit": credit, "adablock": adablock, "daedal": daedal,
    "wino": wino,
}  # fmt: skip
