// The head: logits of scored rows in chunks, each chunk's statistics taken while it is in cache, so that the logits of a
// call are never stored together. A chunk is as many rows as kLogitBytes hold, at most kLogitRows. Callers see rows in
// and results out; how a chunk is cut is decided here alone. Not here: the rules of sampling (sampling.h), expected
// embeddings (expectation.h).
#pragma once

#include "cpu/arena.h"
#include "cpu/expectation.h"
#include "cpu/gemm.h"
#include "cpu/pool.h"
#include "cpu/sampling.h"

namespace ld {

constexpr int kLogitRows = 64;
constexpr size_t kLogitBytes = size_t{32} << 20;

// An OutputLayer of ops.h with the matrices of this device.
struct PackedHead {
  const PackedMatrix* weight;
  const float* bias;
  float cap;
  const Tensor* table;
  float table_scale;
  float* feedback;  // Buffer::feedback
};

class Head {
 public:
  Head(Arena* arena, const ContextShape& shape, int threads);

  // See Ops::propose and Ops::logits.
  int propose(const KernelRow& kernels, Pool& pool, LinearScratch* linear, const LinearInput& input,
              const PackedHead& head, const ScoreRow* score, int rows);
  int logits(const KernelRow& kernels, Pool& pool, LinearScratch* linear, const LinearInput& input,
             const PackedHead& head, int rows, float* out);

 private:
  // Calls consume(row, logits [vocab], thread) for every row, in parallel, and after each chunk finish(first, last).
  // Where joined(row), the logits of the next row stand stride_ behind it. Returns the first row for which consume is
  // false, which means logits that are not finite, or -1.
  template <class Joined, class Consume, class Finish>
  int for_each_row(const KernelRow& kernels, Pool& pool, LinearScratch* linear, const LinearInput& input,
                   const PackedHead& head, int rows, const Joined& joined, const Consume& consume,
                   const Finish& finish);

  int slab_;                            // rows prepared at a time
  int chunk_;                           // rows whose logits are held, two where there are two
  ptrdiff_t stride_;                    // between rows of logits
  float* logits_;                       // [chunk, stride]
  float *e_, *block_max_, *block_sum_;  // per thread
  int blocks_;
  Expectation expectation_;
};

}  // namespace ld
