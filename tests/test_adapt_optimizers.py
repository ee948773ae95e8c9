"""Optimisers, rate schedules and the running average of the weights; stratified times and hidden runs."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import TEXT, tiny_checkpoint

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from test_adapt_train import interrupt, log_of  # noqa: E402

from localdiff.adapt import AdaptOptions, adapt, noise  # noqa: E402
from localdiff.adapt.base import load_folder  # noqa: E402
from localdiff.adapt.batch import Batch  # noqa: E402
from localdiff.adapt.bodies import Scorer  # noqa: E402
from localdiff.adapt.checkpoint import list_checkpoints  # noqa: E402
from localdiff.adapt.objective import NOISES, Objective  # noqa: E402
from localdiff.adapt.optimizers import Average, build_optimizers  # noqa: E402
from localdiff.adapt.processes import Processes  # noqa: E402
from localdiff.adapt.trainer import learning_rate  # noqa: E402
from localdiff.errors import OptionError  # noqa: E402

LENGTH = 32


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_checkpoint("llama", folder, scale=0.05, tie_word_embeddings=True)
    return folder


@pytest.fixture
def options(base, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("\n<|endoftext|>\n".join(TEXT * 4), encoding="utf-8")
    return AdaptOptions(
        base=str(base), output=str(tmp_path / "out"), data=(str(text),), mask_token="<mask>", length=LENGTH, batch=4,
        steps=12, warmup=2, lr=1e-2, schedule="wsd", decay_steps=4, optimizer="muon", ema=0.7, times="stratified",
        spans=0.5, attention="eager", anneal_steps=3, save_every=5, threads=1, device="cpu",
    )  # fmt: skip


def weights_of(folder):
    return load_folder(folder).model.state_dict()


def test_wsd_is_constant_and_falls_over_the_last_steps_whatever_their_number(options):
    options = replace(options, steps=20, warmup=4, decay_steps=5, lr=1.0)
    expected = [0.25, 0.5, 0.75] + [1.0] * 13 + [0.8, 0.6, 0.4, 0.2]
    assert [learning_rate(step, options) for step in range(20)] == pytest.approx(expected)
    longer = replace(options, steps=200)
    assert [learning_rate(step, longer) for step in range(16)] == pytest.approx(expected[:16])
    default = replace(options, decay_steps=None, warmup=0)  # a fifth of the steps
    assert [learning_rate(step, default) for step in (15, 16, 17, 19)] == pytest.approx([1.0, 1.0, 0.75, 0.25])


def test_muon_moves_the_matrices_of_the_layers_orthogonally_and_adamw_the_rest(base, options):
    model = load_folder(base).model
    options = replace(options, weight_decay=0.0, lr=1e-2)
    muon, adamw = build_optimizers(Scorer(model), options, Processes("cpu"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [{names[id(p)] for group in o.param_groups for p in group["params"]} for o in (muon, adamw)]
    assert held[0] == {name for name in names.values() if "proj" in name}
    assert held[0] | held[1] == set(names.values())
    assert not held[0] & held[1]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=random)
    muon.step()
    adamw.step()
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).double().numpy()
        if name not in held[0]:
            assert np.abs(moved) == pytest.approx(options.lr, rel=1e-3)  # the first step of Adam
            continue
        # the nearest orthogonal matrix of the gradient, from its singular value decomposition; the five iterations of
        # Muon leave the singular values between about 0.7 and 1.2
        left, _, right = np.linalg.svd(parameter.grad.double().numpy(), full_matrices=False)
        scale = 0.2 * options.lr * np.sqrt(max(moved.shape))
        values = np.diag(left.T @ (-moved / scale) @ right.T)
        assert values.min() > 0.5, name
        assert values.max() < 1.4, name


def test_the_average_follows_its_formula_and_gives_the_weights_back(base):
    model = load_folder(base).model
    average = Average(model, 0.9, Processes("cpu"))
    first = next(model.parameters())
    expected = first.detach().numpy().astype(np.float64)
    for step in range(1, 5):
        with torch.no_grad():
            first += step
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * first.detach().numpy()
    own = first.detach().clone()
    with average.in_place():
        assert first.detach().numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert torch.equal(first, own)


def test_a_continued_run_has_the_identical_curve_and_average(options, tmp_path):
    options = replace(options, eval_data=options.data, eval_every=4)
    adapt(options)
    halves = replace(options, output=str(tmp_path / "halves"))
    interrupt(halves, 7)
    adapt(replace(halves, resume=True))
    assert log_of(halves.output) == log_of(options.output)
    published, again = weights_of(tmp_path / "out"), weights_of(tmp_path / "halves")
    assert all(torch.equal(published[name], again[name]) for name in published)
    newest = list_checkpoints(tmp_path / "out")[-1]
    saved = torch.load(newest / "trainer.pt", weights_only=True)
    model = load_folder(newest).model
    trained = dict(model.named_parameters())
    assert len(saved["average"]) == len(trained)
    for average, (name, parameter) in zip(saved["average"], trained.items(), strict=True):
        assert torch.equal(published[name], average)  # what is published is the average
        assert not torch.equal(parameter, average)  # and training goes on from its own weights


def test_a_stable_phase_is_continued_with_more_steps(options, tmp_path):
    """A checkpoint before the fall of the rate leads to what a longer run does."""
    interrupt(options, 6)
    adapt(replace(options, resume=True, steps=16, decay_steps=5))
    longer = replace(options, output=str(tmp_path / "longer"), steps=16, decay_steps=5)
    adapt(longer)
    assert log_of(options.output) == log_of(longer.output)


def test_what_has_no_meaning_is_refused(options, monkeypatch):
    for change, sentence in [
        ({"schedule": "cosine"}, "--decay-steps has no meaning without --schedule wsd; leave it out"),
        ({"method": "bd3lm", "anneal_steps": None}, "--spans has no meaning with --method bd3lm; leave it out"),
        ({"method": "ar", "anneal_steps": None, "mask_token": None}, "has no meaning with --method ar; leave it out"),
        ({"spans": 1.5}, "--spans is 1.5, expected 0 to 1"),
        ({"times": "even"}, "--times is 'even', expected one of independent, stratified"),
    ]:
        with pytest.raises(OptionError, match=sentence):
            replace(options, **change)
    several = Processes("cpu")
    several.world = 2
    for flag in ("--optimizer muon", "--ema"):
        with pytest.raises(OptionError, match=f"{flag} needs whole weights, but 2 processes share them; leave it out"):
            several.alone(flag)


@pytest.mark.parametrize("shape", [16, (16, 3)])
def test_stratified_times_take_one_part_each(shape):
    drawn = np.stack([noise.draw_times(shape, torch.Generator().manual_seed(i), True).numpy() for i in range(300)])
    parts = np.floor((drawn - noise.MIN_TIME) / (1 - noise.MIN_TIME) * 16).astype(int)
    assert (np.sort(parts, axis=1).swapaxes(1, -1) == np.arange(16)).all()
    # each by itself is uniform: mean 1/2 and variance 1/12, within four standard errors
    flat = drawn.reshape(300, -1)
    assert flat.mean(axis=0) == pytest.approx(0.5, abs=4 / np.sqrt(12 * 300))
    if len(drawn.shape) == 3:  # the columns are in orders of their own
        assert abs(np.corrcoef(drawn[:, :, 0].ravel(), drawn[:, :, 1].ravel())[0, 1]) < 0.1


def test_a_run_is_one_run_of_the_expected_length():
    random = torch.Generator().manual_seed(3)
    times = torch.full((4000,), 0.3)
    maskable = torch.ones(4000, 21, dtype=torch.bool)
    maskable[:, [0, 7]] = False
    hidden = noise.draw_spans(times, maskable, random).numpy()
    assert not hidden[:, [0, 7]].any()
    inside = np.delete(hidden, [0, 7], axis=1)
    lengths = inside.sum(axis=1)
    assert set(lengths) == {5, 6}  # 0.3 * 19 = 5.7
    assert lengths.mean() == pytest.approx(5.7, abs=4 * np.sqrt(0.21 / 4000))
    edges = np.diff(np.pad(inside, ((0, 0), (1, 1))).astype(int), axis=1)
    assert (np.abs(edges).sum(axis=1) == 2).all()  # one beginning and one end
    # half of the runs, and those that happen to, reach the end
    share = 0.5 + 0.5 * (0.3 / 15 + 0.7 / 14)
    assert inside[:, -1].mean() == pytest.approx(share, abs=4 * 0.5 / np.sqrt(4000))
    for time, count in ((1.0, 19), (0.001, 0)):
        ends = noise.draw_spans(torch.full((50,), time), maskable[:50], random).sum(dim=1)
        assert (ends - count).abs().max() <= 1


@pytest.mark.parametrize("method", ["diffugpt", "mdlm"])
def test_the_share_of_runs_is_the_one_that_was_asked_for(method):
    tokens = torch.full((2000, 40), 5)
    setting = Objective(method, 1, "1/t", shift=True, stratified=True, spans=0.25)
    noised = NOISES[method](Batch(tokens), setting, torch.Generator().manual_seed(2))
    hidden = noised.scored[:, 1:].numpy()
    middle = (hidden.sum(axis=1) > 12) & (hidden.sum(axis=1) < 28)  # where chance makes no single runs
    edges = np.abs(np.diff(np.pad(hidden, ((0, 0), (1, 1))).astype(int), axis=1)).sum(axis=1)
    assert (edges[middle] == 2).mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.1875 / middle.sum()))
    # the weighted loss keeps its expectation: the mean of hidden / t is 1
    if method == "mdlm":
        assert float((noised.weights * noised.scored).sum()) == pytest.approx(1.0, abs=0.05)
