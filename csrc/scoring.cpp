#include "scoring.h"

#include <algorithm>
#include <cmath>

#include "cpu/arena.h"
#include "cpu/kernels.h"
#include "cpu/sampling.h"
#include "error.h"
#include "lattice.h"

namespace ld {
namespace {

template <class... Values>
void expect(bool good, const char* format, Values... values) {
  if (!good) throw Error(LD_INVALID, text(format, values...));
}

// Every scored row must have a token left.
void check_allowed(const ld_canvas& canvas, int index, int vocab, std::vector<uint32_t>* possible) {
  const int words = token_words(vocab);
  std::fill(possible->begin(), possible->end(), ~0u);
  if (vocab % 32 != 0) possible->back() = (1u << vocab % 32) - 1;
  for (int i = 0; i < canvas.n_forbidden; i++)
    (*possible)[canvas.forbidden[i] / 32] &= ~(1u << canvas.forbidden[i] % 32);
  for (int row = 0; row < canvas.n_score; row++) {
    const uint32_t* allowed = canvas.allowed + static_cast<ptrdiff_t>(row) * words;
    uint32_t left = 0;
    for (int word = 0; word < words; word++) left |= allowed[word] & (*possible)[word];
    expect(left != 0, "canvas %d: no token is allowed at position %d", index, canvas.score[row]);
  }
}

const VectorKernels& best_kernels() {
  int count = 0;
  const KernelRow* row = kernel_rows(&count);
  while (!row->supported()) row++;  // the last one always is
  return *row->vector;
}

}  // namespace

void check_ascending(const char* name, const char* kind, int index, const int32_t* values, int count, int limit) {
  for (int i = 0; i < count; i++)
    expect(values[i] >= 0 && values[i] < limit && (i == 0 || values[i] > values[i - 1]),
           "canvas %d: %s[%d] is %d, expected ascending %s below %d", index, name, i, values[i], kind, limit);
}

void check_scored(const ld_canvas& canvas, int index, int vocab, std::vector<uint32_t>* possible) {
  const auto require = [&](bool good, const char* what) { expect(good, "canvas %d: %s", index, what); };
  require(canvas.n_score >= 0 && canvas.n_forbidden >= 0 && canvas.n_repeated >= 0 && canvas.n_bias >= 0,
          "a count is negative");
  require(canvas.score != nullptr || canvas.n_score == 0, "score is NULL");
  require(canvas.forbidden != nullptr || canvas.n_forbidden == 0, "forbidden is NULL");
  require(canvas.temperature >= 0 && canvas.temperature <= 1e6f, "temperature must be 0 or more");
  require(canvas.top_p >= 0 && canvas.top_p <= 1, "top_p must be between 0 and 1");
  require(canvas.top_k >= 0, "top_k must be 0 or more");
  require(canvas.scores_from == LD_SCORE_RAW || canvas.scores_from == LD_SCORE_SAMPLED, "unknown scores_from");
  require(canvas.alternatives >= 0 && canvas.alternatives <= kMaxAlternatives, "alternatives must be 0 to 64");
  require(canvas.repeated != nullptr || canvas.n_repeated == 0, "repeated is NULL");
  require((canvas.bias_token != nullptr && canvas.bias != nullptr) || canvas.n_bias == 0, "bias_token or bias is NULL");
  require(canvas.guidance >= -1000 && canvas.guidance <= 1000, "guidance must be -1000 to 1000");
  require(canvas.repetition_penalty == 0 || (canvas.repetition_penalty >= 0.01f && canvas.repetition_penalty <= 100),
          "repetition_penalty must be 0 (off) or 0.01 to 100");
  for (int i = 0; i < canvas.n_forbidden; i++)
    expect(canvas.forbidden[i] >= 0 && canvas.forbidden[i] < vocab,
           "canvas %d: forbidden token %d is outside the vocabulary of %d", index, canvas.forbidden[i], vocab);
  require(canvas.n_forbidden < vocab, "every token of the vocabulary is forbidden");
  check_ascending("score", "positions", index, canvas.score, canvas.n_score, canvas.length);
  check_ascending("repeated", "tokens", index, canvas.repeated, canvas.n_repeated, vocab);
  check_ascending("bias_token", "tokens", index, canvas.bias_token, canvas.n_bias, vocab);
  for (int i = 0; i < canvas.n_bias; i++)
    expect(std::fabs(canvas.bias[i]) <= 1e9f, "canvas %d: the bias of token %d is %g, expected -1e9 to 1e9", index,
           canvas.bias_token[i], static_cast<double>(canvas.bias[i]));
  if (canvas.allowed != nullptr) check_allowed(canvas, index, vocab, possible);
}

void check_companion(const ld_canvas& canvas, const ld_canvas* companion, int index) {
  const auto require = [&](bool good, const char* what) { expect(good, "canvas %d: guidance %s", index, what); };
  require(companion != nullptr, "needs its unconditional companion as the next canvas of the call");
  expect(companion->n_score == canvas.n_score,
         "canvas %d: the companion scores %d positions, expected %d as the guided canvas", index + 1,
         companion->n_score, canvas.n_score);
  require(companion->guidance == 0, "cannot come from a canvas that is guided itself");
  require(companion->token == nullptr && companion->probability == nullptr && companion->margin == nullptr &&
              companion->entropy == nullptr && companion->alternative_token == nullptr &&
              companion->alternative_probability == nullptr,
          "leaves the companion without results of its own, expected NULL for all but logits and value_drift");
}

Sampling sampling_of(const ld_canvas& canvas) {
  return {canvas.temperature,
          canvas.top_p == 0 ? 1.0f : canvas.top_p,
          canvas.top_k,
          canvas.seed,
          canvas.step,
          canvas.scores_from == LD_SCORE_SAMPLED,
          canvas.forbidden,
          canvas.n_forbidden,
          canvas.alternatives,
          canvas.guidance,
          canvas.repetition_penalty == 0 ? 1.0f : canvas.repetition_penalty,
          canvas.repeated,
          canvas.n_repeated,
          canvas.bias_token,
          canvas.bias,
          canvas.n_bias};
}

ScoreRow scored_row(const ld_canvas& canvas, int i, int vocab, int32_t position, const Sampling* sampling) {
  const auto at = [&](auto* results, size_t width) { return results == nullptr ? nullptr : results + i * width; };
  return {position,
          sampling,
          at(canvas.token, 1),
          at(canvas.probability, 1),
          at(canvas.margin, 1),
          at(canvas.entropy, 1),
          at(canvas.alternative_token, canvas.alternatives),
          at(canvas.alternative_probability, canvas.alternatives),
          at(canvas.allowed, token_words(vocab)),
          at(canvas.logits, vocab)};
}

void refuse_non_finite(const ScoreRow& row) {
  throw Error(LD_NUMERIC, text("the logits for position %d are not finite; the model's weights are damaged or its "
                               "activations overflow",
                               row.position));
}

void propose_logits(int vocab, const ld_canvas* canvases, int n_canvases) {
  expect(vocab >= 1 && vocab < 1 << 28, "vocab is %d, expected 1 to %d", vocab, (1 << 28) - 1);
  std::vector<uint32_t> possible(token_words(vocab));
  for (int i = 0; i < n_canvases; i++) {
    expect(canvases[i].length >= 0, "canvas %d: length is %d, expected 0 or more", i, canvases[i].length);
    expect(canvases[i].positions == nullptr, "canvas %d: positions are of no use here", i);
    expect(canvases[i].n_shadow == 0, "canvas %d: shadows are of no use here", i);
    expect(canvases[i].feedback == 0, "canvas %d: no model takes feedback here", i);
    check_scored(canvases[i], i, vocab, &possible);
    expect(canvases[i].logits != nullptr || canvases[i].n_score == 0, "canvas %d: logits is NULL", i);
    if (canvases[i].guidance != 0) check_companion(canvases[i], i + 1 < n_canvases ? &canvases[i + 1] : nullptr, i);
    check_match(canvases[i], i, vocab);
  }
  const int blocks = logit_blocks(vocab);
  float* logits;
  LogitScratch scratch;
  const auto lay_out = [&](void* base) {
    Arena arena(base);
    logits = arena.take<float>(blocks, kLogitBlock);
    scratch = {arena.take<float>(blocks, kLogitBlock), arena.take<float>(blocks), arena.take<float>(blocks)};
    return arena.used();
  };
  const Scratch memory = take_scratch(lay_out);
  const VectorKernels& kernels = best_kernels();
  for (int i = 0; i < n_canvases; i++) {
    const ld_canvas& canvas = canvases[i];
    const Sampling sampling = sampling_of(canvas);
    if (canvas.automaton != nullptr)
      propose_match(kernels, canvas, canvas.guidance != 0 ? &canvases[i + 1] : nullptr, i);
    for (int row = 0; canvas.automaton == nullptr && row < canvas.n_score; row++) {
      const ScoreRow score = scored_row(canvas, row, vocab, canvas.score[row], &sampling);
      std::copy(score.logits, score.logits + vocab, logits);
      if (canvas.guidance != 0) guide(canvas.guidance, canvases[i + 1].logits + ptrdiff_t{row} * vocab, vocab, logits);
      if (!score_row(kernels, logits, vocab, score, scratch)) refuse_non_finite(score);
    }
    if (canvas.guidance != 0) i++;  // its companion has no results
  }
}

}  // namespace ld
