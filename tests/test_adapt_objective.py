"""Noise, annealing and losses of `adapt` against hand calculation and against transformers' causal models."""

import numpy as np
import pytest
from tiny import SHAPES, tiny_checkpoint

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from localdiff.adapt import bound, objective  # noqa: E402

MASK = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


def softmax_entropy(logits: np.ndarray, target: int) -> float:
    shifted = logits.astype(np.float64) - logits.max()
    return float(np.log(np.exp(shifted).sum()) - shifted[target])


def test_times_lie_between_a_thousandth_and_one(generator):
    times = objective.draw_times(20000, generator).numpy()
    assert times.min() >= 0.001
    assert times.max() < 1.0
    assert abs(times.mean() - 0.5005) < 0.01
    assert abs(np.mean(times < 0.25) - 0.249 / 0.999) < 0.01


def test_noise_masks_with_the_probability_of_each_sequence_and_spares_given_tokens(generator):
    tokens = torch.randint(2, 300, (3, 4000), generator=generator)
    given = torch.zeros_like(tokens, dtype=torch.bool)
    given[:, :100] = True
    times = torch.tensor([0.05, 0.5, 0.95])
    noised = objective.add_noise(tokens, times, MASK, generator, given)
    masked = noised == MASK
    assert not masked[:, :100].any()
    assert torch.equal(noised[~masked], tokens[~masked])
    shares = masked[:, 100:].float().mean(dim=1)
    assert torch.allclose(shares, times, atol=0.03)
    assert (objective.add_noise(tokens, torch.ones(3), MASK, generator) == MASK).all()  # position 0 included


def test_diffugpt_loss_equals_a_plain_recomputation(model, generator):
    tokens = torch.randint(2, 300, (3, 12), generator=generator)
    tokens[1, 4] = MASK  # a genuine token with the mask's id counts as masked
    times = torch.tensor([0.2, 0.6, 0.9])
    noised = objective.add_noise(tokens, times, MASK, generator)
    attention = objective.annealed_mask(12, 1.0, generator, torch.float32)
    with torch.no_grad():
        rows = objective.shifted_rows(noised == MASK)
        scored = objective.scored_logits(model, noised, attention, rows)
        found = objective.diffugpt_losses(scored, tokens, noised, times, MASK)
        logits = model(noised, attention_mask=torch.zeros(3, 1, 12, 12)).logits.numpy()
    weighted = plain = 0.0
    count = 0
    for b in range(3):
        for position in range(1, 12):  # position 0 never scores
            if noised[b, position] == MASK:
                entropy = softmax_entropy(logits[b, position - 1], int(tokens[b, position]))
                weighted += entropy / float(times[b])
                plain += entropy
                count += 1
    assert found.scored == count
    assert float(found.loss) == pytest.approx(weighted / count, rel=1e-5)
    assert float(found.plain) == pytest.approx(plain / count, rel=1e-5)


def test_a_batch_without_a_masked_token_has_loss_zero(model):
    tokens = torch.full((1, 6), 7)
    noised = tokens.clone()
    noised[0, 0] = MASK  # position 0 has no predictor
    rows = objective.shifted_rows(noised == MASK)
    assert not rows.any()
    logits = torch.zeros(0, 320, requires_grad=True)
    found = objective.diffugpt_losses(logits, tokens, noised, torch.tensor([0.5]), MASK)
    assert found.loss.item() == 0.0
    assert found.scored == 0
    found.loss.backward()


def test_shifted_rows_stand_one_before_their_targets():
    targets = torch.tensor([[True, False, True, True, False]])
    assert objective.shifted_rows(targets).tolist() == [[False, True, True, False, False]]


@pytest.mark.parametrize("arch", SHAPES)
def test_attention_closed_by_annealing_is_the_causal_model_and_open_attention_is_not(arch, tmp_path, generator):
    model = tiny_checkpoint(arch, tmp_path)
    tokens = torch.randint(2, 300, (2, 20), generator=generator)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    closed = objective.annealed_mask(20, 0.0, generator, torch.float32)
    opened = objective.annealed_mask(20, 1.0, generator, torch.float32)
    with torch.no_grad():
        causal = model(tokens).logits.flatten(0, 1)
        at_zero = objective.scored_logits(model, tokens, closed, everywhere)
        at_one = objective.scored_logits(model, tokens, opened, everywhere)
        changed = tokens.clone()
        changed[:, -1] += 1
        influenced = objective.scored_logits(model, changed, opened, everywhere)
        unmoved = objective.scored_logits(model, changed, closed, everywhere)
    torch.testing.assert_close(at_zero, causal, rtol=1e-5, atol=1e-5)
    first = slice(0, 19)
    torch.testing.assert_close(unmoved[first], at_zero[first], rtol=0, atol=0)
    assert (influenced[first] - at_one[first]).abs().amax(dim=1).min() > 1e-5  # every row sees the last token


def test_annealing_opens_the_stated_share_of_future_positions(generator):
    assert objective.open_fraction(0, 1) == 1.0
    assert objective.open_fraction(0, 100) == 0.01
    assert objective.open_fraction(49, 100) == 0.5
    assert objective.open_fraction(500, 100) == 1.0
    mask = objective.annealed_mask(400, 0.3, generator, torch.float32)[0, 0]
    lowest = torch.finfo(torch.float32).min
    assert set(mask.unique().tolist()) == {0.0, lowest}
    assert (mask.tril() == 0).all()
    upper = mask[torch.ones(400, 400, dtype=torch.bool).triu(1)]
    assert abs(float((upper == 0).float().mean()) - 0.3) < 0.01
    assert not objective.annealed_mask(50, 1.0, generator, torch.bfloat16).any()


def test_autoregressive_loss_equals_transformers_own(model, generator):
    tokens = torch.randint(2, 300, (2, 16), generator=generator)
    setting = objective.Setting(None, 0.0, generator)
    with torch.no_grad():
        found = objective.autoregressive(model, tokens, setting, torch.float32)
        expected = model(tokens, labels=tokens).loss
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-5)
    assert found.scored == 30


def test_bound_is_exact_where_the_prediction_ignores_the_context(model):
    """A model that sees nothing predicts each token alike whatever is masked: the bound is then its cross-entropy."""
    blind = type(model)(model.config)
    with torch.no_grad():
        for name, parameter in blind.named_parameters():
            parameter.zero_() if "layers" in name else parameter.normal_()
        blind.get_input_embeddings().weight[:] = blind.get_input_embeddings().weight[3]  # every token looks the same
    sequences = np.random.default_rng(0).integers(2, 300, (4, 24))
    value, error = bound.diffusion_bound(blind, sequences, MASK, draws=6)
    with torch.no_grad():
        logits = blind(torch.from_numpy(sequences)).logits.numpy()
    each = [[softmax_entropy(logits[b, i - 1], sequences[b, i]) for i in range(1, 24)] for b in range(4)]
    assert value == pytest.approx(np.mean(each), rel=0.15)  # which tokens are masked is drawn
    assert error > 0
    exact, _ = bound.autoregressive_nll(blind, sequences)
    assert exact == pytest.approx(np.mean(each), rel=1e-5)


def test_bound_equals_the_integral_over_time_of_the_weighted_loss(model, generator):
    """The bound draws the number of masked tokens; the paper's form draws t. Both are the same expectation."""
    sequences = np.random.default_rng(1).integers(2, 300, (1, 6))
    value, _ = bound.diffusion_bound(model, np.repeat(sequences, 400, axis=0), MASK, draws=5, batch=500)
    total, nodes, weights = 0.0, *np.polynomial.legendre.leggauss(8)
    tokens = torch.from_numpy(sequences)
    for pattern in range(1, 32):
        masked = np.array([False] + [bool(pattern >> i & 1) for i in range(5)])
        noised = torch.where(torch.from_numpy(masked), MASK, tokens)
        with torch.no_grad():
            logits = model(noised, attention_mask=torch.zeros(1, 1, 6, 6)).logits[0].numpy()
        entropy = sum(softmax_entropy(logits[i - 1], sequences[0, i]) for i in np.flatnonzero(masked))
        count = masked.sum()
        times = (nodes + 1) / 2
        total += entropy * float(np.sum(weights / 2 * times ** (count - 1) * (1 - times) ** (5 - count)))
    assert value == pytest.approx(total / 5, rel=0.05)
