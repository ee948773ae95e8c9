// What tests of sampling and of the head share: random values, one row's results, the kernel rows of this machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/sampling.h"

namespace ld::test {

inline std::vector<float> random_floats(size_t n, unsigned seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

struct Result {
  int32_t token = -7;
  float probability = -7, margin = -7, entropy = -7;
  std::vector<int32_t> alternative_token;
  std::vector<float> alternative_probability;
  bool operator==(const Result&) const = default;

  ScoreRow row(int position, const Sampling& sampling) {
    alternative_token.assign(sampling.alternatives, -7);
    alternative_probability.assign(sampling.alternatives, -7);
    return {position,
            &sampling,
            &token,
            &probability,
            &margin,
            &entropy,
            alternative_token.data(),
            alternative_probability.data()};
  }
};

inline bool score(const VectorKernels& kernels, const std::vector<float>& logits, const Sampling& sampling,
                  int position, Result* result, const uint32_t* allowed = nullptr) {
  const int vocab = static_cast<int>(logits.size()), blocks = logit_blocks(vocab);
  std::vector<float> x(blocks * kLogitBlock, NAN), e(blocks * kLogitBlock), block_max(blocks), block_sum(blocks);
  std::copy(logits.begin(), logits.end(), x.begin());
  ScoreRow row = result->row(position, sampling);
  row.allowed = allowed;
  return score_row(kernels, x.data(), vocab, row, {e.data(), block_max.data(), block_sum.data()});
}

inline std::vector<const KernelRow*> supported_rows() {
  std::vector<const KernelRow*> rows;
  int count;
  const KernelRow* all = kernel_rows(&count);
  for (int i = 0; i < count; ++i) {
    if (all[i].supported()) rows.push_back(&all[i]);
  }
  return rows;
}

inline Sampling greedy() {
  Sampling s{};
  s.top_p = 1;
  return s;
}

}  // namespace ld::test
