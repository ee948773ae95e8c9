#include "cpu/expectation.h"

#include <algorithm>
#include <cmath>

namespace ld {
namespace {

constexpr int kMixColumns = 256;  // of a task at most, whole blocks of any type
constexpr int kLeastColumns = 64;

}  // namespace

Expectation::Expectation(Arena* arena, const ContextShape& shape, int chunk, int threads) : chunk_(chunk) {
  const int spans = (shape.vocab + kMixed - 1) / kMixed;
  p_ = arena->take<float>(spans, chunk, kMixed);
  table_ = arena->take<float>(threads, kMixed, kMixColumns);
  sums_ = arena->take<float>(threads, chunk, kMixColumns);
}

void Expectation::add(const VectorKernels& kernels, const ScoreRow& row, ptrdiff_t at, float* logits, int vocab,
                      const LogitScratch& scratch) {
  const int blocks = logit_blocks(vocab);
  std::fill(logits + vocab, logits + blocks * kLogitBlock, kAbsent);
  if (!kernels.scan(logits, blocks, scratch.block_max)) return;
  const float max = *std::max_element(scratch.block_max, scratch.block_max + blocks);
  const float temperature = row.sampling->temperature;
  const float factor = temperature > 0 ? std::min(1 / temperature, 1e30f) : 1;
  kernels.exponentials(logits, blocks, max, factor, scratch.e, scratch.block_sum);
  double sum = 0;
  for (int b = 0; b < blocks; ++b) sum += scratch.block_sum[b];
  const float share = static_cast<float>(1 / sum);
  for (int first = 0; first < vocab; first += kMixed) {
    float* to = p_ + (static_cast<ptrdiff_t>(first / kMixed) * chunk_ + at) * kMixed;
    for (int i = 0; i < std::min(kMixed, vocab - first); ++i) to[i] = scratch.e[first + i] * share;
  }
}

void Expectation::take(const VectorKernels& kernels, Pool& pool, const Tensor& table, float scale,
                       const ScoreRow* score, int rows, float* feedback) {
  const int width = static_cast<int>(table.columns()), vocab = static_cast<int>(table.rows());
  const int block = table.type->block, columns = std::max(block, kLeastColumns);
  const size_t row_bytes = table.columns() / block * table.type->block_bytes;
  pool.parallel((width + columns - 1) / columns, [&](int task, int thread) {
    const int first = task * columns, count = std::min(columns, width - first);
    const int padded = padded_head_dim(count);
    float* decoded = table_ + static_cast<ptrdiff_t>(thread) * kMixed * kMixColumns;
    float* sums = sums_ + static_cast<ptrdiff_t>(thread) * chunk_ * kMixColumns;
    std::fill(sums, sums + static_cast<ptrdiff_t>(rows) * padded, 0.0f);
    std::fill(decoded, decoded + kMixed * padded, 0.0f);
    const uint8_t* source = table.data.data() + first / block * table.type->block_bytes;
    for (int token = 0; token < vocab; token += kMixed) {
      const int tokens = std::min(kMixed, vocab - token);
      for (int i = 0; i < tokens; ++i)
        table.type->decode(source + (token + i) * row_bytes, decoded + static_cast<ptrdiff_t>(i) * padded, count);
      const float* p = p_ + static_cast<ptrdiff_t>(token / kMixed) * chunk_ * kMixed;
      kernels.mix(p, rows, decoded, padded, tokens, sums);
    }
    for (int r = 0; r < rows; ++r) {
      if (score[r].feedback < 0) continue;
      float* to = feedback + static_cast<ptrdiff_t>(score[r].feedback) * width + first;
      for (int i = 0; i < count; ++i) to[i] = sums[static_cast<ptrdiff_t>(r) * padded + i] * scale;
    }
  });
}

}  // namespace ld
