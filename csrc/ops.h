// Ops: everything the forward pass asks of a device, as one table of functions per device. transformer.cpp is written
// once over this table; cpu/ fills it for processors, a plug-in library fills it for GPUs.
//
// Shapes: row-major float32 activations [rows, width]. A "row" is one position of one canvas that is computed in this
// step; rows of a canvas are contiguous and ascend by position. Token, position and interval arrays are host memory.
// Every result is independent of the number of threads, of the other rows of the call and of their order (reduction
// order is fixed per row). Operations may throw Error only while opening, packing and creating.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>

#include "gguf.h"

namespace ld {

struct Device;   // an opened device: kernel row, worker threads for packing
struct Weight;   // a matrix in the device's own layout
struct Context;  // a session's state on the device: threads, buffers, KV state, scratch

struct DeviceOptions {
  const char* isa;    // kernel row by name, null = best
  int threads;        // 0 = all that the process may use
  bool plan = false;  // weights are counted, not packed; the device can tell sizes and nothing else
};

// How a matrix is used: rows looked up by token or position, or multiplied with activations.
enum class Use { gather, multiply };

// Activation buffers of a context, each [rows, width given in ContextShape].
// `ffn` holds gate | up of a gated feed-forward layer side by side; `branch` what is normed or summed before it joins x,
// `side` what joins the branch; `head` what a masked language model's head makes of score_rows rows; `feedback` the
// embeddings that ScoreRow::feedback asks for, one row for each place of each slot.
enum class Buffer { x, qkv, attention, ffn, branch, side, head, low_rank, feedback, count };

// Of a device's own memory one part in so many stays free for the driver and other programs.
constexpr size_t kLeftFree = 16;

// How quantised weights are multiplied: with the file's block scales, or with one scale per 128 values, which is faster and
// rounds a little more (cpu/fold.h). Weights in float are not concerned.
enum class Math { exact, fast };

// The keys and values of one layer; its query heads are as long.
struct KvShape {
  int kv_heads, head_dim;
};

struct ContextShape {
  int threads;  // 0 = all that the process may use
  Math math;
  int slots, slot_length, layers, heads;
  const KvShape* kv;  // [layers], outlives the context
  int rows;           // at most, per call
  int score_rows;     // at most, per call
  int width[static_cast<int>(Buffer::count)];
  int max_k;  // widest input of any linear layer
  int vocab;
  int ropes;                              // tables of rotary positions
  int experts, experts_used, expert_dim;  // 0 where no layer has experts

  int max_head_dim() const {
    int most = 0;
    for (const KvShape* layer = kv; layer < kv + layers; layer++) most = std::max(most, layer->head_dim);
    return most;
  }
  size_t rows_of(Buffer buffer) const {
    if (buffer == Buffer::feedback) return static_cast<size_t>(slots) * slot_length;
    return buffer == Buffer::head ? score_rows : rows;
  }
  int width_of(Buffer buffer) const { return width[static_cast<int>(buffer)]; }
};

enum class NormKind { none, rms, layer };
enum class Activation { none, silu, gelu_tanh, gelu_erf, relu, tanh };

struct Norm {
  NormKind kind;
  const float* weight;  // [width], device memory
  const float* bias;    // or null
  float eps;
};

// The rows that a linear layer multiplies: norm(x), or activation(x), or activation(x) * up. Quantised once, shared by
// all outputs of the call.
struct LinearInput {
  const float* x;       // [*, width]
  int stride;           // floats between rows of x and of up
  int width;            // = k of every weight
  const int32_t* pick;  // [rows] row r of the input is row pick[r] of x; null = r
  Norm norm;
  Activation activation;
  const float* up;  // gate partner or null
};

struct LinearOutput {
  const Weight* weight;  // [n, width]
  const float* bias;     // [n] or null, device memory
  float* y;              // [rows, n] at stride
  int stride;
  bool add;  // y += instead of y =  (residual)
};

enum class Rope { none, interleaved, half };

struct RopeParams {
  Rope kind;
  int dims;                  // leading values of each head that are rotated
  const float* frequencies;  // [dims / 2], radians per position; device memory
  int table;                 // which of ContextShape::ropes: every table has its own frequencies
  float magnitude;           // of rotated queries and keys
  // Queries at position p are scaled by 1 + temperature * ln(1 + floor(p / temperature_length)); 0 = off.
  float temperature, temperature_length;
};

// How one layer attends; kv_heads and head_dim are those of its KvShape.
struct AttentionLayer {
  int index;                    // of the layer's state
  Norm q_norm, k_norm, v_norm;  // of every head, before rotation, [head_dim]
  RopeParams rope;
  float scale;  // of the scores
};

// One computed row: where its state lives, which places [lo, hi) of the state it sees, all but `hidden`, and the position
// it stands for. Place and position differ where tokens are stored in another order than they are read. store_kv adds to
// drift, where it is not null, 1 - the cosine of the row's values and those they replace.
struct RowInfo {
  int32_t slot;
  int32_t place;
  int32_t lo, hi;
  int32_t position;     // < ContextShape::slot_length
  int32_t hidden = -1;  // -1 = none
  float* drift = nullptr;
};

// The rows of one forward pass, host memory, each [count].
struct Rows {
  const int32_t* tokens;
  const int32_t* positions;
  const RowInfo* info;
  const RowInfo* windowed;  // the same rows as layers with a window see them
  const uint8_t* canvas;    // 1 for the rows of a canvas, 0 for those of a prompt
  const int32_t* feedback;  // the row of Buffer::feedback that is fed back to each; -1 = none
  int count;
};

// How a router picks experts: scores = softmax or sigmoid of its logits; `bias` is added for the choice alone; where
// there are groups, those with the largest sums of their best two scores stay in; the best `used` experts are chosen
// (of equals the first). Weights are their scores, divided by their sum where renormalise, times scale.
enum class RouterKind { none, softmax, sigmoid };

constexpr int kMostExpertsUsed = 64, kMostGroups = 64;

struct RouterRule {
  RouterKind kind;
  int used;                 // <= kMostExpertsUsed
  int groups, groups_used;  // 1, 1 = no groups
  bool renormalise;
  float scale;
};

struct Experts {
  RouterRule rule;
  int count;
  const Weight* router;       // [count, width], float32
  Norm router_norm;           // of what the router reads, in place of the input's; none = as the experts
  const float* bias;          // [count] or null
  const float* gain;          // [count] factors of the weights, or null
  const Weight* const* gate;  // [count], each [expert_dim, width]
  const Weight* const* up;
  const Weight* const* down;  // each [width, expert_dim]
  Activation activation;      // activation(gate) * up
};

struct Sampling {
  float temperature;  // 0 = argmax
  float top_p;        // >= 1 = off
  int32_t top_k;      // 0 = off
  uint64_t seed;
  int32_t step;
  bool scores_sampled;       // scores from the tempered, filtered distribution instead of softmax(logits)
  const int32_t* forbidden;  // [n_forbidden], host memory
  int32_t n_forbidden;
  int32_t alternatives;  // 0..64
  float guidance;        // logits become u + (guidance + 1) * (logits - u) with those of the next row, u; 0 = off
  float repetition_penalty;
  const int32_t* repeated;  // [n_repeated], host memory
  int32_t n_repeated;
  const int32_t* bias_token;  // [n_bias], host memory
  const float* bias;          // [n_bias]
  int32_t n_bias;
};

// What makes logits of rows: cap * tanh(x / cap) of x = weight * row + bias.
struct OutputLayer {
  const Weight* weight;  // [vocab, width]
  const float* bias;     // [vocab] or null
  float cap;             // 0 = as they are
  const Weight* table;   // token embeddings, looked up for ScoreRow::feedback; null where the model has no use for it
  float table_scale;
};

// One scored row and where its results go (host memory, each may be null). The row after a guided one is its companion: it
// gives logits and has no other results.
struct ScoreRow {
  int32_t position;  // the position being predicted: with seed and step the key of the random numbers
  const Sampling* sampling;
  int32_t* token;
  float* probability;
  float* margin;
  float* entropy;
  int32_t* alternative_token;
  float* alternative_probability;
  const uint32_t* allowed = nullptr;  // bits of the tokens that may be proposed, host memory; null = all
  float* logits = nullptr;            // [vocab] as the head gives them
  int32_t wanted = -1;                // the token that is scored instead of a proposed one, -1 = none
  // Row of Buffer::feedback that receives the expected embedding: the sum over the tokens t of p(t) * table[t] *
  // table_scale, with p = softmax(logits as the head gives them / temperature), temperature 0 standing for 1; -1 = none.
  int32_t feedback = -1;
};

// Where the inputs of observed weights are added up, host memory: squares by column, and how many rows there were.
struct ObservedSums {
  double* squares;  // [k]
  uint64_t* rows;
};
using Observed = std::unordered_map<const Weight*, ObservedSums>;

// What the weights of a device take, bytes.
struct Footprint {
  size_t weights;  // pages of packed matrices
  size_t tables;   // gather weights: they stay in the file, and the pages of rows that are looked up come into memory
  size_t packing;  // the most that was there at one time: packed matrices and the file's bytes of the one being packed
};

// What the machine can do at best, all threads together.
struct Peak {
  int threads;
  double int8_gops, f32_gflops;  // 1e9 operations per second, a multiply and an add counted as two
  double memory_gbps;            // 1e9 bytes read per second
  double bf16_gflops = 0;        // of tensor cores; 0 where there are none
};

struct Ops {
  const char* name;  // "cpu"

  Device* (*open)(const DeviceOptions&);
  void (*close)(Device*);
  const char* (*isa)(const Device*);
  Peak (*measure_peak)(Device*, double seconds);               // on the threads that pack weights
  void (*memory)(const Device*, size_t* free, size_t* total);  // of its own; SIZE_MAX where it is the system's

  // The tensor's bytes must outlive a gather weight; a multiply weight owns a repacked copy.
  Weight* (*pack)(Device*, const Tensor&, Use);
  void (*release)(Weight*);
  size_t (*weight_bytes)(const Weight*);                  // memory of its own
  Footprint (*footprint)(const Device*);                  // of all that pack() made so far
  float* (*upload)(Device*, const float*, size_t count);  // small vectors: norms, biases, frequencies
  void (*release_vector)(float*);

  size_t (*plan)(const Device*, const ContextShape&);  // bytes that create() takes, all of a session's memory
  Context* (*create)(Device*, const ContextShape&);
  void (*destroy)(Context*);
  float* (*buffer)(Context*, Buffer);
  // Copies host memory into a buffer; `from` may be changed when it returns.
  void (*receive)(Context*, const float* from, size_t count, float* to);
  int (*threads)(const Context*);
  // From now on adds what linear layers read of the observed weights to their sums, in float64 and the order of the rows;
  // null = no more. The map outlives the observing. May allocate and throw.
  void (*observe)(Context*, const Observed*);

  // A step is what the forward pass asks of one device for these rows, from embed() or the first layer's linear() to the
  // last layer; the operations name the same arrays. Where begin_step returns true the device has the step from before and
  // computes it as a whole, and the caller leaves the operations out. Else it gives them and calls end_step, which returns
  // false where they have to be given once more; `whole` false gives a step up. Sessions change no arrays until it ended.
  bool (*begin_step)(Context*, const Rows&);
  bool (*end_step)(Context*, bool whole);

  // out[r] = table[ids[r]] * scale, or += when add; ids null: row 0 for all.
  void (*embed)(Context*, const Weight* table, const int32_t* ids, int rows, bool add, float scale, float* out);
  void (*linear)(Context*, const LinearInput&, int rows, const LinearOutput* outputs, int n_outputs);
  // y[r] = what a linear layer would read of row r, or += when add; y at input.stride, it may be input.x itself.
  void (*apply)(Context*, const LinearInput&, int rows, bool add, float* y);
  // y = the mean of the rows of x, both [*, width]; sums in float64, in the order of the rows.
  void (*mean)(Context*, const float* x, int width, int rows, float* y);
  // x *= factor; x [rows, width]
  void (*scale)(Context*, float* x, int rows, int width, float factor);
  // y[r] = sum over the row's experts, ascending, of weight * down(activation(gate(in)) * up(in)); y [rows, width] must
  // not overlap the input. An expert computes only the rows routed to it.
  void (*experts)(Context*, const LinearInput&, int rows, const Experts&, float* y);
  // qkv holds [rows, heads * head_dim | kv_heads * head_dim | kv_heads * head_dim] at stride. Norms q, k and v and rotates
  // q and k in place, writes k and v to the layer's state at (slot, place).
  void (*store_kv)(Context*, const AttentionLayer&, float* qkv, int stride, const RowInfo*, int rows);
  // Copies the keys and values of places [0, length) of a layer and slot out of the state, or into it; k and v are host
  // memory [length, kv_heads * head_dim].
  void (*read_kv)(Context*, int layer, int slot, int length, float* k, float* v);
  void (*write_kv)(Context*, int layer, int slot, int length, const float* k, const float* v);
  // out[r] = softmax(q[r] . K[lo, hi) * scale) V[lo, hi) per head, without the hidden place; out at stride heads *
  // head_dim. float32 softmax.
  void (*attention)(Context*, const AttentionLayer&, const float* qkv, int stride, const RowInfo*, int rows,
                    float* out);
  // Scores rows of the input against the head; score[r] is its row r. Returns the index of the first row whose logits
  // are not finite, or -1.
  int (*propose)(Context*, const LinearInput& input, const OutputLayer& head, const ScoreRow*, int rows);
  // Raw logits of the same rows to host memory [rows, vocab]; returns as propose does.
  int (*logits)(Context*, const LinearInput& input, int rows, const OutputLayer& head, float* out);
};

const Ops& cpu_ops();

// The CPU kernel rows, best first.
struct IsaRow {
  const char* name;
  bool (*supported)();
};
const IsaRow* isa_rows(int* count);

}  // namespace ld
