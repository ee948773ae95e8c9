"""Noise, attention masks and losses of `adapt` against plain numpy evaluations of the formulas."""

import numpy as np
import pytest
from tiny import SHAPES, tiny_checkpoint

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from localdiff.adapt import bound, fused, noise, objective  # noqa: E402
from localdiff.adapt.batch import Batch  # noqa: E402
from localdiff.adapt.bodies import Scorer  # noqa: E402
from localdiff.adapt.objective import Noised, Objective  # noqa: E402

MASK = 1
VOCAB = 23


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


def hf_logits(model, tokens, attention):
    """float32 [n, length, vocab] with an additive mask."""
    with torch.no_grad():
        mask = attention.expand(len(tokens), 1, -1, -1)
        return model(tokens, attention_mask=mask).logits.numpy()


def random_batch(index):
    """A batch with given tokens and padding; (batch, random logits float64 [2n or n, 2 length, vocab])."""
    random = np.random.default_rng(index)
    count, length = int(random.integers(1, 5)), int(random.integers(4, 20))
    tokens = torch.from_numpy(random.integers(2, VOCAB, (count, length)))
    prompts, ends = random.integers(0, length - 1, count), random.integers(length - 1, length + 1, count)
    places = np.arange(length)
    given = torch.from_numpy(places < prompts[:, None]) if index % 3 else None
    valid = torch.from_numpy(places < ends[:, None]) if index % 3 == 2 else None
    return Batch(tokens, given, valid), random.normal(size=(2 * count, 2 * length, VOCAB)) * 2


def scored_loss(batch, setting, logits, seed):
    """The loss of a model whose logits are `logits` whatever it reads; and the noised batch."""
    generator = torch.Generator().manual_seed(seed)
    noised = objective.NOISES[setting.method](batch, setting, generator)
    inputs = objective.lay_out(noised, setting, 1.0, generator, torch.float32)
    table = torch.from_numpy(logits[: inputs.tokens.shape[0], : inputs.tokens.shape[1]]).flatten(0, 1)
    smoothing = None if noised.smoothing is None else noised.smoothing[noised.scored].double()
    loss, _ = fused.cross_entropy(
        table[inputs.rows], torch.eye(VOCAB, dtype=torch.float64), None, inputs.targets,
        noised.weights[noised.scored].double(), smoothing,
    )  # fmt: skip
    return float(loss), noised


def maskable_of(batch, shift):
    allowed = np.ones(batch.tokens.shape, bool)
    if batch.given is not None:
        allowed &= ~batch.given.numpy()
    if batch.valid is not None:
        allowed &= batch.valid.numpy()
    if shift:
        allowed[:, 0] = False
    return allowed


SETTINGS = [
    Objective("diffugpt", MASK),
    Objective("diffugpt", MASK, shift=False),
    Objective("mdlm", MASK, "1/t", "token", shift=False),
    Objective("mdlm", MASK, "uniform", "sequence", shift=True),
    Objective("mdlm", MASK, "1/t", "batch", shift=True),
    Objective("rdm", MASK, "linear", shift=False, masked_base=True),
    Objective("rdm", MASK, "constant", shift=True, timesteps=7, label_smoothing=0.1),
    Objective("rdm", MASK, "linear", shift=False, mask_ratio=0.33, timesteps=10),
    Objective("bd3lm", MASK, "1/t", "token", shift=False, block=4),
    Objective("bd3lm", MASK, "uniform", "sequence", shift=True, block=3),
    Objective("ar", None),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s.method}-{s.weight}-{s.shift}")
def test_losses_equal_a_plain_evaluation_of_the_formulas_on_100_random_batches(setting):
    for index in range(100):
        batch, logits = random_batch(index)
        found, noised = scored_loss(batch, setting, logits, seed=index)
        entropies = np.log(np.exp(logits).sum(axis=2, keepdims=True)) - logits
        expected = FORMULAS[setting.method](batch, setting, entropies, noised, index)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


# entropies: float64 [n, rows, vocab], -log softmax of the logits


def row_of(place, setting, length):
    """Where the logits for a place stand in the input."""
    if setting.shift and setting.block and place % setting.block == 0:
        return length + place - 1  # the clean token before the block
    return place - setting.shift


def diffugpt_formula(batch, setting, entropies, noised, seed):
    count, length = batch.tokens.shape
    times = 0.001 + 0.999 * torch.rand(count, generator=torch.Generator().manual_seed(seed)).numpy().astype(float)
    total, masked = 0.0, 0
    for b in range(count):
        for i in range(int(setting.shift), length):
            if noised.tokens[b, i] == MASK:
                masked += 1
                total += entropies[b, i - setting.shift, batch.tokens[b, i]] / times[b]
    return total / max(1, masked)


def mdlm_formula(batch, setting, entropies, noised, seed):
    count, length = batch.tokens.shape
    blocks = -(-length // setting.block) if setting.block else 1
    shape = (count, blocks) if setting.block else (count,)
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).numpy().astype(float)
    times = (0.001 + 0.999 * drawn).reshape(count, blocks)
    allowed = maskable_of(batch, setting.shift)
    total = 0.0
    for b in range(count):
        divisor = {"token": allowed.sum(), "sequence": allowed[b].sum() * count, "batch": count}[setting.normalise]
        for i in range(length):
            if noised.tokens[b, i] == MASK and allowed[b, i]:
                time = times[b, i // setting.block if setting.block else 0]
                weight = 1 / time if setting.weight == "1/t" else 1.0
                row = row_of(i, setting, length)
                total += weight * entropies[b, row, batch.tokens[b, i]] / divisor
    return total


def rdm_formula(batch, setting, entropies, noised, seed):
    count, length = batch.tokens.shape
    steps = setting.timesteps
    if setting.mask_ratio is None:
        drawn = torch.randint(1, steps + 1, (2, count), generator=torch.Generator().manual_seed(seed)).numpy()
        t = np.concatenate([drawn.max(axis=0), drawn.min(axis=0)])
    else:
        t = np.full(2 * count, np.ceil(setting.mask_ratio * steps))
    allowed = maskable_of(batch, setting.shift)
    total = 0.0
    for b in range(2 * count):
        weight = steps - t[b] + 1 if setting.weight == "linear" else steps
        for i in np.flatnonzero((noised.tokens[b] == MASK).numpy() & allowed[b % count]):
            row = entropies[b, i - setting.shift]
            cross, uniform = row[batch.tokens[b % count, i]], row.mean()
            smooth = setting.label_smoothing
            each = (1 - smooth) * weight * cross + smooth * steps * uniform
            total += each / allowed[b % count].sum() / (2 * count)
    return total


def ar_formula(batch, setting, entropies, noised, seed):
    allowed = maskable_of(batch, True)
    return float(np.mean([entropies[b, i - 1, batch.tokens[b, i]] for b, i in zip(*np.nonzero(allowed), strict=True)]))


FORMULAS = {
    "diffugpt": diffugpt_formula,
    "mdlm": mdlm_formula,
    "bd3lm": mdlm_formula,
    "rdm": rdm_formula,
    "ar": ar_formula,
}


@pytest.mark.parametrize("smooth", [False, True])
def test_the_gradient_of_the_fused_cross_entropy_is_the_numerical_one(smooth, monkeypatch, generator):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", 1)  # chunks of 8 rows
    hidden, matrix, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((19, 5), (7, 5), (7,))
    )
    targets = torch.randint(0, 7, (19,), generator=generator)
    weights, smoothing = torch.rand(2, 19, generator=generator, dtype=torch.float64)

    def loss(*inputs):
        return fused.cross_entropy(*inputs, targets, weights, smoothing if smooth else None)[0]

    assert torch.autograd.gradcheck(loss, (hidden, matrix, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_cross_entropy_equals_torchs_in_value_gradient_and_holds_one_chunk_of_logits(
    dtype, monkeypatch, generator
):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", 4000)
    rows, dim, vocab = 300, 16, 200
    hidden = torch.randn(rows, dim, generator=generator, requires_grad=True)
    matrix = torch.randn(vocab, dim, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator)
    plain = torch.nn.functional.cross_entropy(hidden @ matrix.T, targets, reduction="none")
    (plain * weights).sum().backward()
    expected = [hidden.grad.clone(), matrix.grad.clone()]
    hidden.grad = matrix.grad = None
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            nonlocal largest
            found = function(*arguments, **(named or {}))
            largest = max(largest, found.numel() if isinstance(found, torch.Tensor) else 0)
            return found

    with Largest():
        loss, entropies = fused.cross_entropy(hidden, matrix, None, targets, weights, dtype=dtype)
        loss.backward()
    assert largest <= max(4000, rows * dim, vocab * dim)
    exact = dtype is torch.float32
    torch.testing.assert_close(entropies, plain.detach(), rtol=1e-5 if exact else 0.05, atol=1e-5 if exact else 0.1)
    for found, wanted in zip((hidden.grad, matrix.grad), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4 if exact else 0.1, atol=1e-5 if exact else 0.05)


def test_times_lie_between_a_thousandth_and_one(generator):
    times = noise.draw_times(20000, generator).numpy()
    assert times.min() >= 0.001
    assert times.max() < 1.0
    assert abs(times.mean() - 0.5005) < 0.01
    assert abs(np.mean(times < 0.25) - 0.249 / 0.999) < 0.01


def test_noise_masks_with_the_probability_of_each_sequence_and_spares_given_tokens(generator):
    tokens = torch.randint(2, 300, (3, 4000), generator=generator)
    allowed = torch.ones_like(tokens, dtype=torch.bool)
    allowed[:, :100] = False
    times = torch.tensor([0.05, 0.5, 0.95])
    masked = noise.draw_masked(times, allowed, generator)
    assert not masked[:, :100].any()
    assert torch.allclose(masked[:, 100:].float().mean(dim=1), times, atol=0.03)
    assert noise.draw_masked(torch.ones(3), torch.ones_like(allowed), generator).all()  # position 0 included


def test_blocks_have_noise_levels_of_their_own(generator):
    batch = Batch(torch.full((400, 64), 7))
    noised = objective.NOISES["bd3lm"](batch, Objective("bd3lm", MASK, "1/t", shift=False, block=16), generator)
    shares = (noised.tokens == MASK).float().view(400, 4, 16).mean(dim=2)
    assert abs(float(shares.mean()) - 0.5) < 0.03
    assert float(torch.corrcoef(shares.T).fill_diagonal_(0).abs().max()) < 0.2
    assert float(shares.std()) > 0.28  # a uniform level has 0.289, and the draws of 16 tokens add to it


def test_coupled_noise_has_the_stated_shares(generator):
    first, second = noise.draw_steps(3000, 50, None, generator)
    assert bool((first >= second).all())
    assert int(second.min()) == 1
    assert int(first.max()) == 50
    assert abs(float(first.float().mean()) - 34.0) < 0.8  # of the larger of two: (T + 1)(4 T - 1) / (6 T)
    allowed = torch.ones(4, 20000, dtype=torch.bool)
    allowed[:, :50] = False
    steps = torch.tensor([40, 30, 20, 10]), torch.tensor([10, 30, 1, 9])
    outer, inner = noise.draw_coupled(*steps, 50, allowed, generator)
    assert not (outer | inner)[:, :50].any()
    for drawn, wanted in ((outer, steps[0]), (inner, steps[1])):
        assert torch.allclose(drawn[:, 50:].float().mean(dim=1), wanted / 50, atol=0.02)
    inside = (inner & outer).sum(dim=1) / inner.sum(dim=1)
    assert inside[[0, 2, 3]].tolist() == [1.0, 1.0, 1.0]
    assert abs(float(inside[1]) - 0.6) < 0.03  # equal steps are drawn apart
    fixed = noise.draw_steps(2, 50, 0.151, generator)
    assert [each.tolist() for each in fixed] == [[8, 8], [8, 8]]


def test_only_the_target_side_is_noised_and_padding_is_neither_noised_nor_scored(generator):
    for index in range(30):
        batch, _ = random_batch(3 * index + 2)
        for setting in SETTINGS[2:-1]:
            noised = objective.NOISES[setting.method](batch, setting, generator)
            repeats = len(noised.tokens) // len(batch.tokens)
            fixed = torch.from_numpy(~maskable_of(batch, setting.shift)).repeat(repeats, 1)
            assert not (noised.scored & fixed).any()
            assert torch.equal(noised.tokens[fixed], batch.tokens.repeat(repeats, 1)[fixed])


def test_a_causal_body_does_not_see_padding(model, generator):
    tokens = torch.randint(2, 300, (2, 9), generator=generator)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 5:] = False
    setting = Objective("rdm", MASK, "linear", shift=True)
    noised = objective.NOISES["rdm"](Batch(tokens, None, valid), setting, generator)
    inputs = objective.lay_out(noised, setting, 1.0, generator, torch.float32)
    with torch.no_grad():
        padded = Scorer(model).hidden(inputs.tokens, inputs.attention, None)
        alone = Scorer(model).hidden(inputs.tokens[[1, 3], :5], torch.zeros(1, 1, 5, 5), None)
    torch.testing.assert_close(padded[[1, 3], :5], alone, rtol=1e-4, atol=1e-5)
    assert not noised.scored[:, 0].any()


def test_the_block_mask_is_that_of_the_paper():
    length, block = 10, 4
    seen = noise.block_mask(length, block, torch.float32)[0, 0] == 0
    for row in range(2 * length):
        for column in range(2 * length):
            noised_row, noised_column = row < length, column < length
            b, c = row % length // block, column % length // block
            diagonal = b == c and noised_row == noised_column
            offset = noised_row and not noised_column and c < b
            causal = not noised_row and not noised_column and c <= b
            assert bool(seen[row, column]) == (diagonal or offset or causal)


@pytest.mark.parametrize("shift", [False, True])
def test_block_training_sees_what_a_runtime_sees_at_each_block(model, generator, shift):
    """One pass over noised and clean halves equals, block by block, a pass over clean blocks and one noised block."""
    tokens = torch.randint(2, 300, (2, 14), generator=generator)
    setting = Objective("bd3lm", MASK, "1/t", shift=shift, block=4)
    noised = objective.NOISES["bd3lm"](Batch(tokens), setting, generator)
    inputs = objective.lay_out(noised, setting, 1.0, generator, torch.float32)
    with torch.no_grad():
        _, found, _ = Scorer(model)(inputs, torch.zeros(len(inputs.targets)))
    blocks = torch.arange(14) // 4
    causal = noise.additive(blocks[None] <= blocks[:, None], torch.float32)
    expected = []
    for b in range(2):
        for place in np.flatnonzero(noised.scored[b].numpy()):
            start = place // 4 * 4
            canvas = torch.cat([tokens[b, :start], noised.tokens[b, start:]])[None]
            logits = hf_logits(model, canvas, causal)[0]
            expected.append(softmax_entropy(logits[place - shift], int(tokens[b, place])))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_diffugpt_loss_equals_a_recomputation_with_the_model(model, generator):
    tokens = torch.randint(2, 300, (3, 12), generator=generator)
    tokens[1, 4] = MASK  # a genuine token with the mask's id counts as masked
    setting = Objective("diffugpt", MASK)
    with torch.no_grad():
        found = objective.losses(
            Scorer(model), Batch(tokens), setting, 1.0, torch.Generator().manual_seed(3), torch.float32
        )
    again = torch.Generator().manual_seed(3)
    noised = objective.NOISES["diffugpt"](Batch(tokens), setting, again)
    times = 0.001 + 0.999 * torch.rand(3, generator=torch.Generator().manual_seed(3))
    logits = hf_logits(model, noised.tokens, torch.zeros(3, 1, 12, 12))
    weighted = plain = 0.0
    count = 0
    for b in range(3):
        for position in range(1, 12):  # position 0 never scores
            if noised.tokens[b, position] == MASK:
                entropy = softmax_entropy(logits[b, position - 1], int(tokens[b, position]))
                weighted += entropy / float(times[b])
                plain += entropy
                count += 1
    assert found.scored == count
    assert noised.scored[1, 4]
    assert float(found.loss) == pytest.approx(weighted / count, rel=1e-5)
    assert float(found.plain) == pytest.approx(plain / count, rel=1e-5)


def test_a_batch_without_a_masked_token_has_loss_zero(model):
    tokens = torch.full((1, 6), 7)
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    noised = Noised(tokens, tokens, nothing, torch.ones(1, 6))
    inputs = objective.lay_out(noised, Objective("diffugpt", MASK), 1.0, torch.Generator(), torch.float32)
    loss, entropies, _ = Scorer(model)(inputs, noised.weights[nothing])
    assert loss.item() == 0.0
    assert len(entropies) == 0
    loss.backward()


@pytest.mark.parametrize("arch", SHAPES)
def test_attention_closed_by_annealing_is_the_causal_model_and_open_attention_is_not(arch, tmp_path, generator):
    model = tiny_checkpoint(arch, tmp_path)
    tokens = torch.randint(2, 300, (2, 20), generator=generator)
    closed = noise.annealed_mask(20, 0.0, generator, torch.float32)
    opened = noise.annealed_mask(20, 1.0, generator, torch.float32)
    scorer = Scorer(model)
    with torch.no_grad():
        causal = scorer.hidden(tokens, None, None)
        torch.testing.assert_close(causal, model.base_model(tokens).last_hidden_state, rtol=1e-5, atol=1e-5)
        at_zero = scorer.hidden(tokens, closed, None)
        at_one = scorer.hidden(tokens, opened, None)
        changed = tokens.clone()
        changed[:, -1] += 1
        influenced = scorer.hidden(changed, opened, None)
        unmoved = scorer.hidden(changed, closed, None)
    torch.testing.assert_close(at_zero, causal, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unmoved[:, :19], at_zero[:, :19], rtol=0, atol=0)
    assert (influenced - at_one)[:, :19].abs().amax(dim=2).min() > 1e-5  # every row sees the last token


def test_annealing_opens_the_stated_share_of_future_positions(generator):
    assert noise.open_fraction(0, 1) == 1.0
    assert noise.open_fraction(0, 100) == 0.01
    assert noise.open_fraction(49, 100) == 0.5
    assert noise.open_fraction(500, 100) == 1.0
    mask = noise.annealed_mask(400, 0.3, generator, torch.float32)[0, 0]
    lowest = torch.finfo(torch.float32).min
    assert set(mask.unique().tolist()) == {0.0, lowest}
    assert (mask.tril() == 0).all()
    upper = mask[torch.ones(400, 400, dtype=torch.bool).triu(1)]
    assert abs(float((upper == 0).float().mean()) - 0.3) < 0.01
    assert not noise.annealed_mask(50, 1.0, generator, torch.bfloat16).any()


def test_autoregressive_loss_equals_transformers_own(model, generator):
    tokens = torch.randint(2, 300, (2, 16), generator=generator)
    with torch.no_grad():
        found = objective.losses(Scorer(model), Batch(tokens), Objective("ar", None), 0.0, generator, torch.float32)
        expected = model(tokens, labels=tokens).loss
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-5)
    assert found.scored == 30


def test_the_gradient_of_a_step_is_that_of_plain_torch(model, generator):
    tokens = torch.randint(2, 300, (2, 16), generator=generator)
    model.zero_grad()
    found = objective.losses(Scorer(model), Batch(tokens), Objective("ar", None), 0.0, generator, torch.float32)
    found.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
    model.zero_grad()


def test_bound_is_exact_where_the_prediction_ignores_the_context(model):
    """A model that sees nothing predicts each token alike whatever is masked: the bound is then its cross-entropy."""
    blind = type(model)(model.config)
    with torch.no_grad():
        for name, parameter in blind.named_parameters():
            parameter.zero_() if "layers" in name else parameter.normal_()
        blind.get_input_embeddings().weight[:] = blind.get_input_embeddings().weight[3]  # every token looks the same
    sequences = torch.from_numpy(np.random.default_rng(0).integers(2, 300, (4, 24)))
    value, error = bound.diffusion_bound(Scorer(blind), Batch(sequences), Objective("diffugpt", MASK), draws=6)
    with torch.no_grad():
        logits = blind(sequences).logits.numpy()
    each = [[softmax_entropy(logits[b, i - 1], int(sequences[b, i])) for i in range(1, 24)] for b in range(4)]
    assert value == pytest.approx(np.mean(each), rel=0.15)  # which tokens are masked is drawn
    assert error > 0
    exact, _ = bound.autoregressive_nll(Scorer(blind), Batch(sequences))
    assert exact == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize("block", [0, 3])
def test_bound_equals_the_integral_over_time_of_the_weighted_loss(model, block):
    """The bound draws the number of masked tokens; the paper's form draws t. Both are the same expectation."""
    tokens = torch.from_numpy(np.random.default_rng(1).integers(2, 300, (1, 6)))
    setting = Objective("bd3lm" if block else "mdlm", MASK, shift=not block, block=block)
    value, _ = bound.diffusion_bound(Scorer(model), Batch(tokens.repeat(400, 1)), setting, draws=5, batch=500)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    times = (nodes + 1) / 2
    blocks = torch.arange(6) // (block or 6)
    seen = noise.additive(blocks[None] <= blocks[:, None], torch.float32)
    total = 0.0
    for start in range(0, 6, block or 6):
        places = [i for i in range(start, start + (block or 6)) if i > 0]
        for pattern in range(1, 2 ** len(places)):
            masked = [place for bit, place in enumerate(places) if pattern >> bit & 1]
            canvas = tokens.clone()
            canvas[0, masked] = MASK
            logits = hf_logits(model, canvas, seen)[0]
            entropy = sum(softmax_entropy(logits[i - setting.shift], int(tokens[0, i])) for i in masked)
            count, free = len(masked), len(places) - len(masked)
            total += entropy * float(np.sum(weights / 2 * times ** (count - 1) * (1 - times) ** free))
    assert value == pytest.approx(total / 5, rel=0.05)
