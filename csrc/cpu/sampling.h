// From one row of logits to a token and its scores: the rules of sampling, over the vector kernels.
//
// 0. Guidance: logits = u + (guidance + 1) * (logits - u), u of the unconditional companion (Ho and Salimans,
//    arXiv:2207.12598). Then repeated tokens are penalised: logits above 0 are divided by the penalty, others multiplied
//    (Keskar et al., CTRL, arXiv:1909.05858). Then biases are added. All in float32, one operation after the other.
// 1. Tokens that are forbidden or not allowed are removed: all that follows is as if they were not in the vocabulary.
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

// logits[i] = u[i] + (guidance + 1) * (logits[i] - u[i]).
void guide(float guidance, const float* u, int vocab, float* logits);

// The penalty and the biases of rule 0.
void adjust(const Sampling& sampling, float* logits);

// Fills the results that `row` asks for, except its logits. `logits` holds vocab values, guided already, and is
// overwritten up to whole blocks. False where a logit is NaN or infinite. Alternatives past the number of tokens are -1
// with probability 0. At least one token must be left.
bool score_row(const VectorKernels& kernels, float* logits, int vocab, const ScoreRow& row,
               const LogitScratch& scratch);

}  // namespace ld
