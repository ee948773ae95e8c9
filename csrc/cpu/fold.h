// Fast arithmetic of integer kinds: blocks of 128 instead of 32, for weights and for rows.
//
// Weights stay packed as they are (gemm.h). While a chunk is unpacked it is folded: in a group of 128 values of a channel
// every weight becomes the integer nearest to w / s, of magnitude 127 at most, where 127 s is the largest magnitude that the
// group's block scales allow (with minimums, at least half the steps of the largest scale). What block scales cost in every tile, a conversion and two multiplications
// per 32 values, is paid per 128, and minimums cost nothing. This rounds once more than exact arithmetic does; whether a
// model bears it is decided outside, by what it does to the model's output. All rows fold to the same integers.
// Not here: exact arithmetic (gemm.h), who chooses.
#pragma once

#include "cpu/gemm.h"

namespace ld {

constexpr int kGroup = 128;  // values that share one scale; the last group of a row may be shorter

struct FoldKernels {
  int rows;  // most rows of one tile
  // As GemmKernels::quantize, per group. Writes q, scale and sum, the last times a factor of the row.
  void (*quantize)(const float* x, int k, const Int8Row& row);
  // Unpacks and folds to chunk->q, in bytes of the row's own, and to chunk->group_scale.
  void (*unpack)(const PackedTraits& traits, const uint8_t* records, int k, Int8Chunk* chunk);
  // Chunks begin at a group.
  void (*tile)(const Int8Tile& tile);
};

extern const FoldKernels fold_scalar;
#if defined(__x86_64__)
extern const FoldKernels fold_avx2;
extern const FoldKernels fold_avx_vnni;
extern const FoldKernels fold_avx512_vnni;
#elif defined(__aarch64__)
extern const FoldKernels fold_neon_dot;
extern const FoldKernels fold_neon_i8mm;
#endif

}  // namespace ld
