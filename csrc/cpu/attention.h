// Norms of heads, rotary positions, keys and values, and interval attention of a context: cuts a call into tasks of some rows of one
// canvas x one kv head, so that the query heads of a group share what is loaded, and hands them to the threads. How a
// call is cut never shows in the results. Not here: the arithmetic (attention.inl).
#pragma once

#include <vector>

#include "cpu/arena.h"
#include "cpu/kv.h"
#include "cpu/pool.h"
#include "cpu/vector.h"

namespace ld {

constexpr int kMostRopes = 2;

class Attention {
 public:
  // Memory from the arena must be zeros.
  Attention(Arena* arena, const ContextShape& shape, int threads);

  // See Ops::store_kv (k is rotated in place too) and Ops::attention.
  void store(const VectorKernels& kernels, Pool& pool, const AttentionLayer& layer, float* qkv, int stride,
             const RowInfo* rows, int n_rows);
  void attend(const VectorKernels& kernels, Pool& pool, const AttentionLayer& layer, const float* qkv, int stride,
              const RowInfo* rows, int n_rows, float* out);
  // See Ops::read_kv and write_kv.
  void read(int layer, int slot, int length, float* k, float* v) const;
  void write(int layer, int slot, int length, const float* k, const float* v);

 private:
  struct Piece {  // rows of one canvas
    int32_t first, count;
  };

  // Cosines and sines by position, [slot_length][pairs_], filled when a position is first used.
  struct Angles {
    const float* frequencies = nullptr;  // that they were made from
    float *cosines, *sines;
    bool* known;  // [positions]
  };

  void fill_angles(Angles* angles, const RowInfo* rows, int n_rows, const RopeParams& rope);

  int heads_, pairs_;          // pairs: of values in the longest head
  std::vector<Kv> kv_;         // by layer
  Angles angles_[kMostRopes];  // by RopeParams::table
  size_t positions_;
  Piece* pieces_;  // [rows]
  float* scratch_;
  size_t scratch_stride_;  // floats per thread
};

}  // namespace ld
