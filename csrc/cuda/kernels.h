// The kernels' launchers, one file each. All work on a stream, float32 activations in device memory, and give results
// that depend on nothing but a row's own inputs: reductions run in a fixed order.
#pragma once

#include "cuda/runtime.h"
#include "ops.h"

namespace ld::cuda {

// A matrix in device memory as it lies in the file: [n, k] in blocks of `type`.
struct Matrix {
  TensorType type;
  const uint8_t* data;  // 16-byte aligned
  int n, k;
  size_t row_bytes;
};

// RowInfo in device memory.
struct Row {
  int32_t slot, place, lo, hi, position, hidden;
};

// ---- rows.cu ----
void embed(cudaStream_t stream, const Matrix& table, const int32_t* ids, int rows, bool add, float scale, float* out);
// made[r * width] = what a linear layer reads of row r of the input; input.pick in device memory.
void produce(cudaStream_t stream, const LinearInput& input, int rows, float* made);
// y[r * stride] = or += what produce() makes; y may be input.x.
void apply(cudaStream_t stream, const LinearInput& input, int rows, bool add, float* y);
// y = the mean of the rows of x, [*, width].
void mean(cudaStream_t stream, const float* x, int width, int rows, float* y);
// x[i] *= factor.
void scale(cudaStream_t stream, float* x, size_t count, float factor);
// x[i] = bound * tanh(x[i] / bound); NaN where it was not finite.
void cap(cudaStream_t stream, float* x, size_t count, float bound);

// ---- int8.cu ----
// Rows in int8, q[i] * scale[i / size] is about x[i]: by blocks of 32 as cpu/gemm.h's exact arithmetic has them, or by
// groups of 128 as fast arithmetic has (cpu/fold.h). The sums of q of the first 16 and of the last 16 of a block are the
// halves of a word; groups have none.
struct Quantised {
  int8_t* q;       // [rows][k], 16-byte aligned
  float* scale;    // [rows][blocks]
  uint32_t* sums;  // [rows][blocks]
  int size = 32;   // of a block, or kGroup
  constexpr ptrdiff_t blocks(int k) const { return (k + size - 1) / size; }
};
constexpr int kGroup = 128;
// k is a multiple of 32.
void quantise(cudaStream_t stream, const float* x, ptrdiff_t stride, int k, int rows, const Quantised& out);

// What a product reads of its rows: float32; int8 in blocks, whose int32 sums with the blocks of the file are those of exact
// arithmetic on a processor; or, for tensor cores with float32 sums, bfloat16 for weights in bfloat16, and parts that are as
// good as float32, two of float16 or three of bfloat16, for weights in the same.
enum class Form { float32, int8, bfloat16, halves, bfloats };

// ---- tensor.cu ----
constexpr int kSplitBlock = 32, kMostParts = 3;
__host__ __device__ inline int split_blocks(int k) { return (k + kSplitBlock - 1) / kSplitBlock; }
// Rows in a form of 16-bit floats, the last block filled up with zeros.
struct Split {
  uint32_t* words;  // [rows][blocks][parts][16] pairs of neighbouring values, 16-byte aligned
  float* scale;     // [rows][blocks] of the sum of the parts; halves only
};
void split(cudaStream_t stream, Form form, const float* x, ptrdiff_t stride, int k, int rows, const Split& out);

// ---- gemm.cu, int8.cu and tensor.cu ----
// y[r * stride + i] = or += sum over j of w[i, j] x[row(r) * x_stride + j], plus bias[i].
struct Product {
  Matrix w;
  const float* x;
  ptrdiff_t x_stride;
  Quantised quantised;  // the same rows, for Form::int8
  const float* bias;
  float* y;
  ptrdiff_t y_stride;
  bool add;
  Form form = Form::float32;
  Split split = {};  // the same rows, for forms of 16-bit floats
};
void multiply(cudaStream_t stream, const Product& product, int rows);

// For each expert e the rows [begin[e], begin[e + 1]) of y with weights data[e]; row r of the input is x[pick[r]], or
// x[r] where pick is null. begin has experts + 1 values; `pairs` is its last, of which the host knows a bound.
struct ExpertProduct {
  Product common;
  const uint8_t* const* data;  // [experts], or null: `step` bytes apart from common.w.data on
  size_t step;
  const int32_t* begin;
  const int32_t* pick;
  int experts;
};
void multiply_experts(cudaStream_t stream, const ExpertProduct& product, int most_rows);

// ---- fold.cu ----
// Channels [column, column + columns) of matrices as they lie in the file: w alone, or experts like it at data[e].
struct Source {
  Matrix w;
  const uint8_t* const* data;  // [experts] in device memory, or null
  int column, columns, experts;
};
// Folds weights of integers as cpu/fold.h says, those of expert e to to + e * step: signed bytes [columns][k], then the
// scales of groups, float32 [ceil(k / 128)][columns].
void fold(cudaStream_t stream, const Source& source, uint8_t* to, size_t step);

// ---- bfloat.cu ----
// Weights of integers, those of expert e to to + e * step: [columns][k], 16-byte aligned.
void round(cudaStream_t stream, const Source& source, uint8_t* to, size_t step);

// ---- attention.cu ----
// The state of one layer.
struct State {
  float *keys, *values;  // [slots][slot_length][kv_heads][head_dim]
  int slot_length, kv_heads, head_dim;
};
// Norms q, k and v, rotates q and k in place and writes k and v to the state. angles: scratch of rows * dims floats. drift [rows]
// receives 1 - the cosine of the new values and those they replace; null = not asked.
void store(cudaStream_t stream, const AttentionLayer& layer, const State& state, int heads, float* qkv, int stride,
           const Row* rows, int n_rows, float* angles, float* drift);
// Softmax and sum over each row's places, of queries that lie in qkv as store() leaves them; out [rows][heads][head_dim].
struct Attend {
  float scale;  // of the scores
  State state;
  int heads;
  const float* qkv;
  int stride;
  const Row* rows;
  int n_rows;
  float* out;
  __host__ __device__ int group() const { return heads / state.kv_heads; }  // queries of one key
  __device__ const float* query(int row, int head) const {
    return qkv + static_cast<ptrdiff_t>(row) * stride + head * state.head_dim;
  }
  __device__ float* result(int row, int head) const {
    return out + (static_cast<size_t>(row) * heads + head) * state.head_dim;
  }
};
// Tensor cores where a row of their table takes the layer, else float32; `exact` asks for float32.
void attend(cudaStream_t stream, const Attend& attend, bool exact);

// ---- experts.cu ----
struct Routing {
  float* scores;     // [rows][2 * count] scratch
  int32_t* chosen;   // [rows][used], ascending
  float* weights;    // [rows][used]
  int32_t* begin;    // [count + 1] where each expert's pairs begin
  int32_t* row_of;   // [pairs] the row of each pair, experts ascending, rows ascending
  int32_t* pair_of;  // [rows][used]
};
void route(cudaStream_t stream, const RouterRule& rule, int count, const float* logits, const float* bias,
           const float* gain, int rows, const Routing& routing);
// y[r] = sum of weights[r][n] * out[pair_of[r][n]].
void gather_experts(cudaStream_t stream, const Routing& routing, int used, const float* out, int width, int rows,
                    ptrdiff_t stride, float* y);

// ---- expectation.cu ----
struct Expectation {
  float* factor;  // [rows] of the logits
  int32_t* row;   // [rows] of `feedback`, -1 = not asked
};
// feedback[row[r]] = sum over the tokens t of softmax(logits[r] * factor[r])[t] * table[t] * scale; logits and p
// [rows, vocab], p is scratch; feedback [*, width of the table].
void expect(cudaStream_t stream, const float* logits, float* p, const Matrix& table, float scale,
            const Expectation& expectation, int rows, float* feedback);

// ---- propose.cu ----
// One scored row, pointers in device memory; see Sampling and ScoreRow.
struct ScoreTask {
  float temperature, top_p, guidance, penalty;
  int32_t top_k, scores_sampled, alternatives, n_forbidden, n_repeated, n_bias;
  double uniform;
  const int32_t *forbidden, *repeated, *bias_token;
  const float* bias;
  const uint32_t* allowed;
  int32_t companion;  // the row whose logits guide, -1 = none
  int32_t skip;       // a companion itself
  int32_t wanted;     // the token that is scored instead of a proposed one, -1 = none
};
struct ScoreResults {  // [rows] each; alternatives [rows][64]
  int32_t* token;
  float *probability, *margin, *entropy;
  int32_t* alternative_token;
  float* alternative_probability;
  int32_t* bad;  // [rows] 1 where a logit is not finite
};
// logits [rows, stride] are overwritten; e [rows, stride] is scratch.
void score(cudaStream_t stream, float* logits, float* e, ptrdiff_t stride, int vocab, const ScoreTask* tasks, int rows,
           const ScoreResults& results);

}  // namespace ld::cuda
