// Layout: a row of logits in blocks of kLogitBlock; maxima and sums per block let selection and the draw skip nearly all
// of the vocabulary. Nothing sorts it: cuts are found by narrowing a threshold on the bits of the exponentials.
#include "cpu/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "cpu/philox.h"

namespace ld {
namespace {

// The likeliest tokens in order of falling logit, equal ones by id.
struct Top {
  int count = 0;
  int32_t token[kMaxAlternatives];
  float logit[kMaxAlternatives];
};

Top find_top(const float* x, int blocks, const float* block_max, int wanted) {
  Top top;
  for (int b = 0; b < blocks; ++b) {
    if (top.count == wanted && !(block_max[b] > top.logit[wanted - 1])) continue;
    for (int i = b * kLogitBlock; i < (b + 1) * kLogitBlock; ++i) {
      if (!(x[i] > (top.count == wanted ? top.logit[wanted - 1] : kAbsent))) continue;
      int at = top.count < wanted ? top.count++ : wanted - 1;
      for (; at > 0 && top.logit[at - 1] < x[i]; --at) {
        top.logit[at] = top.logit[at - 1];
        top.token[at] = top.token[at - 1];
      }
      top.logit[at] = x[i];
      top.token[at] = i;
    }
  }
  return top;
}

// exp((logits - max) * scale) of all tokens, in scratch.e and scratch.block_sum, and what normalises it.
struct Distribution {
  float scale;
  double sum;
  double weighted;  // sum of e * log e

  double entropy() const { return std::max(0.0, std::log(sum) - weighted / sum); }
};

double sum_blocks(const LogitScratch& scratch, int blocks) {
  double sum = 0;
  for (int b = 0; b < blocks; ++b) sum += scratch.block_sum[b];
  return sum;
}

// The largest value v of which reached(how many e >= v, their sum) holds: tokens above it stay, of those that equal it
// some.
struct Boundary {
  float value;
  int64_t above;  // tokens > value
  double above_mass;
  int64_t equal;  // tokens == value
};

template <class Reached>
Boundary find_boundary(const VectorKernels& kernels, const float* e, int blocks, Reached reached) {
  // Positive floats ascend with their bits. reached(low) holds, reached(high) does not; 9 parts per pass.
  uint32_t low = 1, high = std::bit_cast<uint32_t>(1.0f) + 1;
  int64_t low_count = INT64_MAX, high_count = 0;
  double high_mass = 0;
  // One token between them is the boundary whatever its exact value.
  while (high - low > 1 && low_count - high_count > 1) {
    float threshold[kThresholds];
    int64_t count[kThresholds];
    double mass[kThresholds];
    const uint32_t from = low, range = high - low;
    auto bits = [&](int i) { return from + static_cast<uint32_t>(uint64_t{range} * (i + 1) / (kThresholds + 1)); };
    for (int i = 0; i < kThresholds; ++i) threshold[i] = std::bit_cast<float>(bits(i));
    kernels.above(e, blocks, threshold, count, mass);
    for (int i = 0; i < kThresholds; ++i) {
      if (!reached(count[i], mass[i])) {
        high = bits(i);
        high_count = count[i];
        high_mass = mass[i];
        break;
      }
      low = bits(i);
      low_count = count[i];
    }
  }
  return {std::bit_cast<float>(low), high_count, high_mass, low_count - high_count};
}

// Leaves the top_k likeliest tokens, then the nucleus; what goes becomes 0.
void filter(const VectorKernels& kernels, const float* x, int blocks, float max, const Sampling& sampling,
            const LogitScratch& scratch, Distribution* distribution) {
  float* e = scratch.e;
  float value = 0;  // tokens above stay, and the first `ties` of those that equal it
  int64_t ties = INT64_MAX, equal = INT64_MAX;
  double sum = distribution->sum;
  if (sampling.top_k > 0) {
    const auto reached = [&](int64_t count, double) { return count >= sampling.top_k; };
    const Boundary b = find_boundary(kernels, e, blocks, reached);
    value = b.value;
    equal = b.equal;
    ties = sampling.top_k - b.above;
    sum = b.above_mass + static_cast<double>(std::min(ties, equal)) * value;
  }
  if (sampling.top_p > 0 && sampling.top_p < 1) {
    const double target = sampling.top_p * sum;
    const auto reached = [&](int64_t, double mass) { return mass > target; };
    const Boundary b = find_boundary(kernels, e, blocks, reached);
    const int64_t stay = static_cast<int64_t>(std::max(0.0, target - b.above_mass) / b.value) + 1;
    if (b.value > value) ties = stay;
    if (b.value == value) ties = std::min(ties, stay);
    if (b.value >= value) {
      value = b.value;
      equal = b.equal;
    }
  }
  if (ties < equal) {
    int64_t seen = 0;
    for (int i = 0; i < blocks * kLogitBlock; ++i) {
      if (e[i] == value && seen++ >= ties) e[i] = 0;
    }
  }
  distribution->weighted = kernels.cut(x, blocks, max, distribution->scale, value, e, scratch.block_sum);
  distribution->sum = sum_blocks(scratch, blocks);
}

// Inverse of the distribution function, tokens in order of id. Sums of a block and of its tokens may differ in the last
// bits, so the last token of a block that can be drawn takes what rounding leaves.
int32_t draw(const LogitScratch& scratch, int blocks, const Distribution& distribution, double uniform) {
  const double target = uniform * distribution.sum;
  double before = 0;
  int block = 0;
  for (int b = 0; b < blocks; ++b) {
    if (scratch.block_sum[b] == 0) continue;
    block = b;
    if (before + scratch.block_sum[b] > target) break;
    before += scratch.block_sum[b];
  }
  int32_t token = block * kLogitBlock;
  for (int i = block * kLogitBlock; i < (block + 1) * kLogitBlock; ++i) {
    if (scratch.e[i] == 0) continue;
    token = i;
    before += scratch.e[i];
    if (before > target) break;
  }
  return token;
}

void keep_allowed(const uint32_t* allowed, int vocab, float* logits) {
  for (int i = 0; i < vocab; ++i) {
    if (!(allowed[i / 32] >> (i % 32) & 1)) logits[i] = kAbsent;
  }
}

}  // namespace

void guide(float guidance, const float* u, int vocab, float* logits) {
  const float factor = guidance + 1;
  for (int i = 0; i < vocab; ++i) logits[i] = u[i] + factor * (logits[i] - u[i]);
}

void adjust(const Sampling& sampling, float* logits) {
  const float penalty = sampling.repetition_penalty;
  for (int i = 0; penalty != 1 && i < sampling.n_repeated; ++i) {
    float& logit = logits[sampling.repeated[i]];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
  for (int i = 0; i < sampling.n_bias; ++i) logits[sampling.bias_token[i]] += sampling.bias[i];
}

bool score_row(const VectorKernels& kernels, float* logits, int vocab, const ScoreRow& row,
               const LogitScratch& scratch) {
  const Sampling& sampling = *row.sampling;
  const int blocks = logit_blocks(vocab);
  std::fill(logits + vocab, logits + blocks * kLogitBlock, kAbsent);
  adjust(sampling, logits);
  if (row.allowed) {
    if (!kernels.scan(logits, blocks, scratch.block_max)) return false;  // a damaged logit stays no secret
    keep_allowed(row.allowed, vocab, logits);
  }
  for (int i = 0; i < sampling.n_forbidden; ++i) {
    float& logit = logits[sampling.forbidden[i]];
    if (!std::isfinite(logit)) return false;
    logit = kAbsent;
  }
  if (!kernels.scan(logits, blocks, scratch.block_max)) return false;
  const bool alternatives = row.alternative_token || row.alternative_probability;
  const Top top = find_top(logits, blocks, scratch.block_max, alternatives ? std::max(2, sampling.alternatives) : 2);
  const float max = top.logit[0];

  const bool draws = sampling.temperature > 0;
  const bool filters = sampling.top_k > 0 || (sampling.top_p > 0 && sampling.top_p < 1);
  const bool scores = row.probability || row.margin || row.entropy || row.alternative_probability;
  // The smallest temperatures would make an infinite factor; any that large is the argmax already.
  const float scale = draws ? std::min(1 / sampling.temperature, 1e30f) : 1;

  Distribution distribution{};
  const auto exponentials = [&](float factor) {
    distribution.scale = factor;
    distribution.weighted = kernels.exponentials(logits, blocks, max, factor, scratch.e, scratch.block_sum);
    distribution.sum = sum_blocks(scratch, blocks);
  };
  int32_t token = row.wanted >= 0 ? row.wanted : top.token[0];
  const bool sampled = draws || (scores && sampling.scores_sampled);
  if (sampled) {
    exponentials(scale);
    if (filters) filter(kernels, logits, blocks, max, sampling, scratch, &distribution);
    if (draws && row.wanted < 0)
      token = draw(scratch, blocks, distribution, philox_uniform(sampling.seed, row.position, sampling.step));
  }
  if (scores && !sampling.scores_sampled && (!sampled || filters || scale != 1)) exponentials(1);

  const auto probability = [&](int32_t id) { return static_cast<float>(scratch.e[id] / distribution.sum); };
  if (row.token) *row.token = token;
  if (row.probability) *row.probability = probability(token);
  if (row.margin) {
    const float second = top.count > 1 ? scratch.e[top.token[1]] : 0;
    *row.margin = static_cast<float>((double{scratch.e[top.token[0]]} - second) / distribution.sum);
  }
  if (row.entropy) *row.entropy = static_cast<float>(distribution.entropy());
  for (int i = 0; alternatives && i < sampling.alternatives; ++i) {
    if (row.alternative_token) row.alternative_token[i] = i < top.count ? top.token[i] : -1;
    if (row.alternative_probability) row.alternative_probability[i] = i < top.count ? probability(top.token[i]) : 0;
  }
  return true;
}

}  // namespace ld
