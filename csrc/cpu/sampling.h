// From one row of logits to a token and its scores: the rules of sampling, over the vector kernels.
//
// 1. Forbidden tokens are removed: all that follows is as if they were not in the vocabulary.
// 2. The sampled distribution is softmax(logits / temperature), cut to the top_k likeliest tokens, then to the nucleus:
//    in order of falling probability (equal ones by token id) a token stays while the mass before it is at most top_p,
//    so the first always stays. At temperature 0 the token is the argmax (the lowest id of equals) and the distribution
//    is the one of temperature 1.
// 3. Above temperature 0 one number u of philox.h picks the token: the first, by id, whose running sum of probabilities
//    exceeds u. This is distributed exactly as Gumbel-max at that temperature, argmax(logits - temperature * log(-log u)),
//    with one random number per row instead of one per token.
// 4. Probability, margin, entropy and alternatives come from softmax(logits) or from the sampled distribution.
// Probabilities are float32 exponentials relative to the largest logit, exactly 0 where less than 2^-126.
#pragma once

#include "cpu/vector.h"

namespace ld {

constexpr int kMaxAlternatives = 64;

constexpr int logit_blocks(int vocab) { return (vocab + kLogitBlock - 1) / kLogitBlock; }

struct LogitScratch {
  float* e;          // [blocks * kLogitBlock], 64-byte aligned
  float* block_max;  // [blocks]
  float* block_sum;  // [blocks]
};

// Fills the results that `row` asks for. `logits` holds vocab values and is overwritten up to whole blocks. False where
// a logit is NaN or infinite. Alternatives past the number of tokens are -1 with probability 0. At least one token must
// not be forbidden.
bool score_row(const VectorKernels& kernels, float* logits, int vocab, const ScoreRow& row,
               const LogitScratch& scratch);

}  // namespace ld
