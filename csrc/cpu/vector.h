// The float32 arithmetic around the matrix products, one row of functions per instruction set: what a linear layer reads
// (norms, activations), rotary positions, interval attention, statistics of a row of logits. Written once in vector.inl
// and attention.inl with GCC vector types; each vector_<isa>.cpp compiles them under its own flags.
//
// Every function works on one thread, allocates nothing, and gives a row the same bits whatever other rows share the
// call. Between instruction sets the order of sums differs, so results agree to rounding only. Not here: threads, the
// rules of sampling (propose.cpp), storage of weights.
#pragma once

#include "cpu/kv.h"
#include "ops.h"

namespace ld {

// Logit rows are worked on in blocks of this many tokens; a row is padded to whole blocks with kAbsent.
constexpr int kLogitBlock = 256;
// Stands for a token that cannot be proposed: finite, and its exponential is exactly 0.
constexpr float kAbsent = -3.4028234663852886e38f;
// Vectors that one call of VectorKernels::mix adds up at most.
constexpr int kMixed = 128;
// Thresholds that one pass of VectorKernels::above tries.
constexpr int kThresholds = 8;

// One kv head of one canvas: n_rows rows with `group` query heads each.
struct AttentionTask {
  const float* q;  // row 0, first query head of the group; [n_rows, group * head_dim] at stride
  int stride;
  float* out;  // the same shape at out_stride
  int out_stride;
  const RowInfo* rows;
  int n_rows, group, head_dim;
  const float* keys;  // layout of kv.h
  const float* values;
  float scale;
  float* scratch;  // attention_scratch(n_rows * group, head_dim) floats, 64-byte aligned
};

struct VectorKernels {
  // One row of what a linear layer multiplies, to dst [width]: a = activation(x), then a * up, then the norm of that;
  // what is absent is left out. `row` counts rows of the input, before pick. dst may be the row itself.
  void (*produce)(const LinearInput&, int row, float* dst);
  // Rotates `dims` leading values of each of `heads` heads in place; cosines and sines [dims / 2] of the row's position.
  void (*rotate)(float* x, int heads, int head_dim, Rope kind, int dims, const float* cosines, const float* sines);
  void (*attend)(const AttentionTask&);
  // o[r] += sum of p[r][i] * v[i] over i < count, ascending, for each of the rows; p [rows][kMixed], v [count][width],
  // o [rows][width], width a multiple of kValueAlign.
  void (*mix)(const float* p, int rows, const float* v, int width, int count, float* o);

  // ---- a row of logits, [blocks * kLogitBlock], 64-byte aligned ----
  // Largest value of each block; false where a value is NaN or infinite.
  bool (*scan)(const float* x, int blocks, float* block_max);
  // e = exp((x - max) * scale) and its sum per block; returns the sum of e * (x - max) * scale.
  double (*exponentials)(const float* x, int blocks, float max, float scale, float* e, float* block_sum);
  // How many values of e are at least threshold[i] (ascending), and their sum.
  void (*above)(const float* e, int blocks, const float threshold[kThresholds], int64_t count[kThresholds],
                double mass[kThresholds]);
  // Sets values of e under `floor` to 0; new sums per block and returned sum as in exponentials.
  double (*cut)(const float* x, int blocks, float max, float scale, float floor, float* e, float* block_sum);
  // x = bound * tanh(x / bound)
  void (*cap)(float* x, int n, float bound);
  // The exponential of the functions above, for a single value.
  float (*exp)(float x);
};

// Floats of scratch that one AttentionTask of `queries` = n_rows * group needs.
size_t attention_scratch(int queries, int head_dim);

extern const VectorKernels vector_scalar;
#if defined(__x86_64__)
extern const VectorKernels vector_avx2;
extern const VectorKernels vector_avx512_vnni;
#elif defined(__aarch64__)
extern const VectorKernels vector_neon_dot;
#endif

}  // namespace ld
