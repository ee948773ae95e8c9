// Matrix products: packed weights, prepared input rows, and the linear layer made of both.
//
// A matrix [n, k] is cut into panels of `GemmKernels::panel` output channels (the last one padded with zeros). A panel
// is a sequence of records along k; integer kinds keep their bits and exact scales in memory and are unpacked, one chunk
// of k at a time, into a small buffer that all rows of a task then reuse. Input rows are prepared once per call: int8
// per block of 32 for integer kinds, float32 otherwise.
//
// The value of an output is fixed by its own row and channel. Exact arithmetic: blocks of 32 ascend along k,
//   t = scale[0] * dot[0] (+ scale[1] * dot[1] where scales cover 16);  y = fma(t, row_scale, y);
//   y = fma(minimum, row_scale * row_sum, y), for each minimum
// with exact int32 dots. Fast arithmetic: groups of 128 ascend, while a chunk is unpacked its weights are folded to int8
// with one scale per group (fold.h), y = fma(scale * dot, row_scale, y). Float32 kinds: y = fma(w, x, y) along k. So it
// depends neither on the other rows of a call nor on threads, panels, tiles or chunks.
// Not here: norms, activations and sampling (vector.h), threads (pool.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cpu/kernels.h"
#include "ops.h"

namespace ld {

class Pool;

constexpr int kBlock = 32;        // input values that share one scale in exact arithmetic
constexpr int kChunk = 512;       // most values of k that are unpacked at a time; a multiple of every record
constexpr int kFloatChunk = 256;  // the same for float kinds
constexpr int kSlabRows = 512;    // most rows that are prepared at a time
constexpr int kTaskRows = 256;    // most rows of one task
constexpr int kTaskPanels = 4;    // most panels of one task
constexpr int kMaxPanel = 32;     // of any kernel row

// ---- packed weights ----

// What is stored per weight. "super": 256 values share float16 d (and dmin), blocks have 8-bit codes; else every block
// of 32 has a float16 scale (and minimum). w = scale * (q - offset) + minimum, or scale * table[q].
enum class PackedKind {
  f32,
  f16,
  bf16,
  i4,
  i4_min,
  i5,
  i5_min,
  i8,
  i4_super_min,
  i5_super_min,
  i6_super,
  i2_super_min,
  i3_super,
  iq4,
  iq4_super,
  e2m1,
  count
};

struct PackedTraits {
  const char* name;
  bool integer;  // int8 arithmetic, else float32
  int bits;      // per stored weight; integers: 2 to 6 or 8
  int reach;   // bits of q - offset or of an entry of the table: it lies in [-2^(reach - 1), 2^(reach - 1)) if centred
  int record;  // values of k per record
  int span;    // values of k per scale and minimum: 32 or 16; 0 where there is none
  bool minimum;
  bool super;
  int offset;           // subtracted from stored values; 8 bits are signed as they are
  const int8_t* table;  // of 4 stored bits, 16 entries; null: they are numbers
  bool bfloat;          // scales are bfloat16: powers of two beyond float16
  bool joint;           // one byte holds the codes of a scale and, in its high half, of a minimum
};
const PackedTraits& packed_traits(PackedKind kind);

// Stored bits that lie in q; what is left, one or two of them, lies in `high`.
constexpr int low_bits(int bits) { return bits == 8 ? 8 : bits >= 4 ? 4 : 2; }

// Bytes of one record of a panel of `panel` channels: [d | dmin | scale codes | minimum codes | q | high]. q and high, of
// b bits per value, are [record * b / 32][panel][4] with values of k 4 apart in ascending bits of a byte. Float kinds are
// [panel] of one k.
size_t record_bytes(const PackedTraits& traits, int panel);

// Memory of packed matrices, cut from large pieces so that matrices lie side by side on 2 MiB pages, where the system
// has them. A piece lives as long as any part of it; what is taken is zero. For one thread at a time.
class PackedMemory {
 public:
  // Where `counts_only`, what is taken is counted, not had: take() gives null.
  explicit PackedMemory(bool counts_only = false) : counts_only_(counts_only) {}

  std::shared_ptr<uint8_t> take(size_t bytes);  // Throws Error(LD_MEMORY)
  bool counts_only() const { return counts_only_; }
  size_t resident() const;  // bytes of the pages that what was taken lies on

 private:
  bool counts_only_;
  std::shared_ptr<uint8_t> slab_;
  size_t size_ = 0, used_ = 0;  // of the present piece
  size_t before_ = 0;           // resident in earlier pieces
};

class PackedMatrix {
 public:
  // Repacks a matrix of the file for a kernel row, on all threads of the pool. Throws Error(LD_FILE) naming the tensor
  // for a scale or float that is not finite, or a type that cannot be run, Error(LD_MEMORY). With memory that only counts,
  // the matrix has its shape and size but no weights, and the tensor's bytes are not read.
  static PackedMatrix* pack(const KernelRow& row, const Tensor& tensor, Pool& pool, PackedMemory* memory);
  PackedMatrix(const PackedMatrix&) = delete;
  PackedMatrix& operator=(const PackedMatrix&) = delete;

  const KernelRow& row() const { return *row_; }
  const GemmKernels& kernels() const { return *row_->gemm; }
  const PackedTraits& traits() const { return packed_traits(kind_); }
  PackedKind kind() const { return kind_; }
  int n() const { return n_; }
  int k() const { return k_; }
  int panels() const;  // the last may hold fewer than `panel` channels of meaning
  size_t panel_bytes() const { return panel_bytes_; }
  const uint8_t* panel(int index) const { return data_.get() + static_cast<size_t>(index) * panel_bytes_; }
  size_t bytes() const { return bytes_; }  // memory held

 private:
  PackedMatrix() = default;
  const KernelRow* row_ = nullptr;
  PackedKind kind_ = PackedKind::f32;
  int n_ = 0, k_ = 0;
  size_t panel_bytes_ = 0, bytes_ = 0;
  std::shared_ptr<uint8_t> data_;
};

// ---- what a kernel row supplies ----

// One row of input in int8: q[i] * scale[i / size] is about x[i], where size is kBlock or kGroup (fold.h). The bytes of
// q are the kernel row's own (VNNI adds 128 to those of exact arithmetic).
struct Int8Row {
  uint8_t* q;         // [k]
  float* scale;       // [k / size]; NaN where the block holds a value that is not finite
  float* scaled_sum;  // [k / size] scale * sum of q; exact arithmetic only; for tiles of 16 per minimum [k / 16]
  int32_t* sum;       // [k / size] sum of q
};

// A chunk of one panel, unpacked. Which parts are filled is between a row's unpack and tile.
struct Int8Chunk {
  int k;  // multiple of 32
  int reach, span, offset;
  bool minimum_used;
  uint8_t* q;          // [k / 4][panel][4]
  int32_t* start;      // [k / span][panel]
  float* scale;        // [k / span][panel]
  float* minimum;      // [k / span][panel]
  float* group_scale;  // [k / 128][panel], fast arithmetic; in the place of start
};

// `rows` input rows against one chunk: out[r][c] goes on from its present value.
struct Int8Tile {
  const Int8Chunk* chunk;
  Int8Row row;                       // the first row, at the chunk's first block
  ptrdiff_t q_stride, block_stride;  // from row to row
  int rows;
  float* out;  // [rows, panel]
  ptrdiff_t out_stride;
  // Weights that are needed next: every block of the chunk asks for ahead_lines cache lines of them, because a processor
  // waits for few lines at a time and stops for more.
  const uint8_t* ahead;
  int ahead_lines;
};

struct FloatTile {
  const float* w;  // [k][panel]
  int k;
  const float* x;  // [rows, k]
  ptrdiff_t x_stride;
  int rows;
  float* out;
  ptrdiff_t out_stride;
};

struct GemmKernels {
  int panel;                  // output channels per panel, <= kMaxPanel
  int int8_rows, float_rows;  // most rows of one tile
  uint8_t flip;               // what is xor-ed to the signed bytes of prepared rows
  // Rounds to nearest; |q| <= 127, scale = max |x| / 127 per block, 0 where max |x| < 2^-100. k is a multiple of 32.
  void (*quantize)(const float* x, int k, const Int8Row& row);
  void (*int8_unpack)(const PackedTraits& traits, const uint8_t* records, int k, Int8Chunk* chunk);
  void (*int8_tile)(const Int8Tile& tile);
  void (*float_unpack)(PackedKind kind, const uint8_t* records, int k, float* w);  // f16 and bf16
  void (*float_tile)(const FloatTile& tile);
  // y[c] = sums[c] (+ bias[c]) (+ y[c])
  void (*finish)(const float* sums, const float* bias, bool add, int n, float* y);
};

extern const GemmKernels gemm_scalar;
#if defined(__x86_64__)
extern const GemmKernels gemm_avx2;
extern const GemmKernels gemm_avx_vnni;
extern const GemmKernels gemm_avx512_vnni;
#elif defined(__aarch64__)
extern const GemmKernels gemm_neon_dot;
extern const GemmKernels gemm_neon_i8mm;
#endif

// ---- the linear layer ----

// What matrices want of their input.
struct InputForms {
  bool int8 = false, half_sums = false, floats = false;
  void add(const PackedTraits& t) {
    (t.integer ? int8 : floats) = true;
    half_sums |= t.minimum && t.span == kBlock / 2;
  }
};

// Memory of a session for its linear layers: one slab of prepared rows and the buffers of each thread.
class LinearScratch {
 public:
  // `memory` is 64-byte aligned, linear_scratch_bytes(rows, max_k, threads) long and outlives this.
  LinearScratch(Math math, int rows, int max_k, int threads, void* memory);

  // The rows that prepare() left here, 0 <= r < count.
  Int8Row int8_row(int r) const;
  float* half_sums(int r) const { return half_sum_ + 2 * r * block_stride_; }  // [k / 16] scale * sum of q
  float* float_row(int r) const { return x_ + r * x_stride_; }
  int count() const { return count_; }

  Math math() const { return math_; }
  int threads() const { return threads_count_; }
  ptrdiff_t q_stride() const { return q_stride_; }  // from row to row
  ptrdiff_t block_stride() const { return block_stride_; }
  ptrdiff_t x_stride() const { return x_stride_; }
  struct Thread {       // buffers of one thread
    uint8_t* unpacked;  // one chunk
    float* sums;        // [kTaskRows][kTaskPanels * kMaxPanel]
    float* produced;    // [max_k]
  };
  Thread thread(int index) const;

 private:
  friend void prepare(const KernelRow&, Pool&, LinearScratch*, const LinearInput&, int, int, InputForms);

  uint8_t *q_, *threads_;
  float *scale_, *scaled_sum_, *half_sum_, *x_;
  int32_t* sum_;
  size_t thread_bytes_;
  ptrdiff_t q_stride_ = 0, block_stride_ = 0, x_stride_ = 0;  // of the prepared rows
  int max_k_, threads_count_, count_ = 0;
  Math math_;
};
size_t linear_scratch_bytes(int rows, int max_k, int threads);

// Produces rows [first, first + count) of the input (VectorKernels::produce) in parallel and keeps them in the scratch
// in these forms, int8 in blocks or groups as the scratch's arithmetic asks. count <= kSlabRows; replaces what was
// prepared before.
void prepare(const KernelRow& row, Pool& pool, LinearScratch* scratch, const LinearInput& input, int first, int count,
             InputForms forms);

// Prepared rows [row0, row1) times panels [panel0, panel1), in the calling thread:
//   out[(r - row0) * stride + (p - panel0) * panel + c] = rows[r] . W[p * panel + c]
// Channels past matrix.n() are 0. `thread` is the pool's index of the caller (its buffers are used). out is 64-byte
// aligned and stride a multiple of the panel's width. Fastest for row1 - row0 <= kTaskRows and a few panels.
void multiply_panels(const PackedMatrix& matrix, const LinearScratch& scratch, int thread, int panel0, int panel1,
                     int row0, int row1, float* out, ptrdiff_t stride);

struct PackedOutput {
  const PackedMatrix* matrix;  // [n, input.width]
  const float* bias;           // [n] or null
  float* y;                    // [rows, n] at stride; must not overlap the input
  int stride;
  bool add;  // y += instead of y =
};

// y = produced rows * W^T (+ bias) (+ y) for every output. No allocation.
void linear(const KernelRow& row, Pool& pool, LinearScratch* scratch, const LinearInput& input, int rows,
            const PackedOutput* outputs, int n_outputs);

}  // namespace ld
