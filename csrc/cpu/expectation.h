// Expected embeddings of scored rows: for each row the sum over the vocabulary of its probabilities times the rows of the
// embedding table, for models that are told what they expected. A chunk's probabilities are kept in spans of kMixed tokens;
// each thread then takes some columns of the table, so a column's sum runs over the tokens in ascending order whatever
// else is computed. Not here: which rows are told (session.cpp), the arithmetic (attention.inl).
#pragma once

#include "cpu/arena.h"
#include "cpu/pool.h"
#include "cpu/sampling.h"

namespace ld {

class Expectation {
 public:
  Expectation() = default;
  // For up to `chunk` rows at a time.
  Expectation(Arena* arena, const ContextShape& shape, int chunk, int threads);

  // Keeps the distribution that ScoreRow::feedback is about, of row `at` of the chunk; its logits are filled up to whole
  // blocks. What is not finite is left to score_row, which refuses the call.
  void add(const VectorKernels& kernels, const ScoreRow& row, ptrdiff_t at, float* logits, int vocab,
           const LogitScratch& scratch);
  // Writes the expected embeddings of the chunk's rows to `feedback` [*, width of the table].
  void take(const VectorKernels& kernels, Pool& pool, const Tensor& table, float scale, const ScoreRow* score, int rows,
            float* feedback);

 private:
  int chunk_ = 0;
  float* p_ = nullptr;      // [spans][chunk][kMixed]
  float* table_ = nullptr;  // [threads][kMixed][kMixColumns] decoded rows, columns of one task
  float* sums_ = nullptr;   // [threads][chunk][kMixColumns]
};

}  // namespace ld
