"""The scheduler: texts of many callers come out as they do alone; seats, memory, queue, time, cancelling, failures."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import FakeEngine, random_table
from text_metadata import tiny_bpe

from localdiff.engine import Request
from localdiff.errors import EngineError, OptionError
from localdiff.generation import DenoiseEvent, Generation
from localdiff.model import Model
from localdiff.options import GenerateOptions
from localdiff.serve.hub import Hub
from localdiff.serve.scheduler import Busy, Limits, Scheduler, Stopping, TooLate
from localdiff.spec import DiffusionSpec
from localdiff.text import Tokenizer

MASK = 262


class Waiter:
    """Hears what becomes of one text."""

    def __init__(self, scheduler: Scheduler, model: Model, prompt: Any, **options: Any) -> None:
        self.events: list[DenoiseEvent] = []
        self._end: queue.Queue[Generation | Exception] = queue.Queue()
        (self.ticket,) = scheduler.submit(model.compose(prompt, GenerateOptions(**options)), [self._hear])

    def _hear(self, what: Any) -> None:
        if isinstance(what, DenoiseEvent):
            self.events.append(what)
        else:
            self._end.put(what)

    def end(self) -> Generation | Exception:
        return self._end.get(timeout=60)

    def result(self) -> Generation:
        end = self.end()
        assert isinstance(end, Generation), end
        return end


def limits(parallel: int = 4, waiting: int = 100, seconds: float = 60.0, memory: int = 1 << 30) -> Limits:
    return Limits(parallel, waiting, seconds, memory)


def fake(logits: Any = None, vocab: int = 0, lengths: Any = None) -> tuple[Model, FakeEngine]:
    size = vocab or Tokenizer.from_gguf(tiny_bpe()).vocab_size
    engine = FakeEngine(logits or random_table(size), size, lengths=lengths)
    return Model(engine, tiny_bpe(), DiffusionSpec(MASK, True), Path("fake.gguf")), engine  # type: ignore[arg-type]


ASKED = [
    {"prompt": "Once upon a time", "max_new_tokens": 40, "seed": 1},
    {"prompt": "The cat", "max_new_tokens": 7, "seed": 2, "decoder": "topk", "steps": 5},
    {"prompt": "One day a dog", "max_new_tokens": 150, "seed": 3, "decoder": "threshold", "threshold": 0.4},
    {"prompt": "", "max_new_tokens": 20, "seed": 4, "decoder": "rdm", "steps": 6},
    {"prompt": "Tom and Lily", "max_new_tokens": 33, "seed": 5, "decoder": "llada", "cache": "prefix"},
    {"prompt": "Once upon a time", "max_new_tokens": 64, "seed": 6, "decoder": "dream", "steps": 9},
    {"prompt": "It was a sunny day and", "max_new_tokens": 24, "seed": 7, "decoder": "klass"},
    {"prompt": "Once upon a time", "max_new_tokens": 9, "seed": 8, "temperature": 0.0},
    {"prompt": "The bird", "max_new_tokens": 12, "seed": 9, "guidance": 1.0, "negative_prompt": "One day a big dog"},
    {"prompt": "The bird", "max_new_tokens": 30, "seed": 10, "stop": ".", "repetition_penalty": 1.3},
]  # fmt: skip


def test_a_length_head_is_asked_on_the_schedulers_thread() -> None:
    model, engine = fake(lengths=np.eye(20, dtype=np.float32)[8])
    asked, logits = [], model.length_logits
    model.length_logits = lambda tokens: (asked.append(threading.current_thread().name), logits(tokens))[1]  # type: ignore
    hub = Hub([("it", model)], limits())
    pages = hub.find("it").prompt("The cat", GenerateOptions(decoder="rdm", steps=2))
    hub.close()
    assert [len(page.job.canvas.masked) for page in pages] == [9]
    assert asked == ["localdiff-engine"]
    assert sum(len(session.prompts) for session in engine.sessions) == 1


def test_texts_come_out_as_they_do_alone(stories: Model) -> None:
    """Whenever they come, whatever runs beside them, while the session grows under them."""
    scheduler = Scheduler(stories, limits(parallel=5))
    waiting = []
    for asked in ASKED:
        waiting.append(Waiter(scheduler, stories, **asked))
        time.sleep(0.01)
    for asked, waiter in zip(ASKED, waiting, strict=True):
        alone = stories.generate(**asked)
        together = waiter.result()
        assert (together.tokens, together.text, together.nfe) == (alone.tokens, alone.text, alone.nfe), asked
        assert [event.step for event in waiter.events] == list(range(1, alone.nfe + 1))
        assert all(alone.text.startswith(event.text) for event in waiter.events)
    assert scheduler.counts.engine_calls < sum(waiter.events[-1].step for waiter in waiting)
    assert scheduler.live == scheduler.waiting == 0
    scheduler.close()


def held(release: threading.Event) -> tuple[Model, FakeEngine, Scheduler]:
    """A scheduler whose engine waits for `release` in every call."""
    model, engine = fake(lambda request: release.wait(30) and random_table(model.info.vocab)(request))
    return model, engine, Scheduler(model, limits(parallel=2, waiting=2))


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "session_bytes", lambda _, slots, length: slots * length)


@pytest.mark.usefixtures("planned")
def test_a_full_queue_says_when_to_come_back() -> None:
    release = threading.Event()
    model, _, scheduler = held(release)
    waiters = [Waiter(scheduler, model, "x", max_new_tokens=4) for _ in range(4)]
    with pytest.raises(Busy, match="texts are waiting and at most 2 may") as caught:
        Waiter(scheduler, model, "x", max_new_tokens=4)
    assert 1 <= caught.value.retry_after <= 60
    release.set()
    assert all(len(waiter.result().tokens) <= 4 for waiter in waiters)
    scheduler.close()


@pytest.mark.usefixtures("planned")
def test_a_short_text_does_not_wait_for_a_long_one() -> None:
    model, engine = fake()
    scheduler = Scheduler(model, limits())
    long = Waiter(scheduler, model, "x", max_new_tokens=100, decoder="llada", seed=1)
    while not long.events:
        time.sleep(0.001)
    short = Waiter(scheduler, model, "y", max_new_tokens=3, decoder="llada", seed=2)
    short.result()
    assert long.events[-1].stop_reason is None
    assert max(len(call) for session in engine.sessions for call in session.requests) == 2
    long.result()
    scheduler.close()


@pytest.mark.usefixtures("planned")
def test_what_is_cancelled_leaves_at_the_next_step_and_hears_nothing_more() -> None:
    model, _ = fake()
    scheduler = Scheduler(model, limits(parallel=1))
    first = Waiter(scheduler, model, "x", max_new_tokens=100, decoder="llada")
    second = Waiter(scheduler, model, "x", max_new_tokens=100, decoder="llada")
    third = Waiter(scheduler, model, "x", max_new_tokens=5, decoder="llada")
    while not first.events:
        time.sleep(0.001)
    scheduler.cancel([first.ticket, second.ticket])
    third.result()
    assert first._end.empty()
    assert not second.events
    assert scheduler.counts.finished["cancelled"] == 2
    scheduler.close()


@pytest.mark.usefixtures("planned")
def test_time_is_limited_also_in_the_queue() -> None:
    model, _ = fake()
    scheduler = Scheduler(model, limits(parallel=1, seconds=1e-9))
    assert isinstance(Waiter(scheduler, model, "x").end(), TooLate)
    scheduler.close()


@pytest.mark.usefixtures("planned")
def test_memory_is_limited() -> None:
    model, engine = fake()
    scheduler = Scheduler(model, limits(parallel=8, memory=128))  # bytes = slots * positions
    small = [Waiter(scheduler, model, "x", max_new_tokens=8, seed=seed) for seed in range(5)]
    large = Waiter(scheduler, model, "x", max_new_tokens=100)
    refused = Scheduler(model, limits(memory=64))
    too_large = Waiter(refused, model, "x", max_new_tokens=100)
    assert isinstance(too_large.end(), OptionError)
    for waiter in [*small, large]:
        waiter.result()
    assert max(session.slots * session.slot_length for session in engine.sessions) <= 128
    for each in (scheduler, refused):
        each.close()


@pytest.mark.usefixtures("planned")
def test_a_text_that_fails_does_not_take_others_with_it() -> None:
    size = Tokenizer.from_gguf(tiny_bpe()).vocab_size

    def logits(request: Request) -> Any:
        if len(request.tokens) > 40:
            raise EngineError("the logits of position 3 are not finite")
        return random_table(size)(request)

    model, _ = fake(logits)
    scheduler = Scheduler(model, limits())
    good = [Waiter(scheduler, model, "x", max_new_tokens=20, seed=seed) for seed in (1, 2)]
    bad = Waiter(scheduler, model, "x", max_new_tokens=60)
    assert isinstance(bad.end(), EngineError)
    for seed, waiter in enumerate(good, 1):
        assert waiter.result().tokens == model.generate("x", max_new_tokens=20, seed=seed).tokens
    scheduler.close()


@pytest.mark.usefixtures("planned")
def test_closing_ends_what_runs_and_what_waits() -> None:
    release = threading.Event()
    model, _, scheduler = held(release)
    waiters = [Waiter(scheduler, model, "x", max_new_tokens=30) for _ in range(3)]
    threading.Timer(0.1, release.set).start()
    scheduler.close()
    assert all(isinstance(waiter.end(), Stopping) for waiter in waiters)
    with pytest.raises(Stopping):
        Waiter(scheduler, model, "x")


def test_questions_are_answered_between_steps(stories: Model) -> None:
    scheduler = Scheduler(stories, limits())
    Waiter(scheduler, stories, "Once", max_new_tokens=64)
    assert scheduler.ask(lambda: threading.current_thread().name) == "localdiff-engine"
    with pytest.raises(ZeroDivisionError):
        scheduler.ask(lambda: 1 // 0)
    scheduler.close()


def test_conversations_find_their_slot_again(stories: Model) -> None:
    """A prompt that continues an earlier one gets the slot that holds the longest beginning of it."""
    from localdiff.cache.state import State
    from localdiff.serve.seats import Seats

    seats = Seats(stories, 4, 1 << 30)
    pages = [stories.compose(prompt, GenerateOptions(max_new_tokens=4))[0] for prompt in ("The cat sat", "A dog ran")]
    slots = [seats.take(page.job, 3, True) for page in pages]
    for taken, page in zip(slots, pages, strict=True):
        assert taken is not None
        tokens = page.job.canvas.tokens
        every = np.arange(len(tokens), dtype=np.int32)
        seats.states[taken[0]] = State.empty(len(tokens)).computed(every, tokens, tokens, 1)
        seats.give_back(taken)
    longer = stories.compose("A dog ran away", GenerateOptions(max_new_tokens=4))[0]
    assert seats.take(longer.job, 0, True) == slots[1]
    seats.close()
