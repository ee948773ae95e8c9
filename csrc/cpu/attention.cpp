#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ld {
namespace {

constexpr int kTaskQueries =
    96;                          // rows x query heads of a task: reuse of a block of keys against tasks for all threads
constexpr int kMinQueries = 12;  // of a task that is cut smaller for more threads
constexpr int kTasksPerThread = 4;
constexpr int kStoreRows = 16;
constexpr int kMaxTile = 16;  // bounds of any kernel row's query rows, block of positions and vector width
constexpr int kMaxSpan = 128;
constexpr int kMaxWidth = 16;

constexpr size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

size_t attention_scratch(int queries, int head_dim) {
  const size_t padded = queries + kMaxTile;
  return round_up(padded * (padded_head_dim(head_dim) + head_dim + kMaxWidth + 1) + 16 + kMaxTile * kMaxSpan, 16);
}

Attention::Attention(Arena* arena, const ContextShape& shape, int threads)
    : heads_(shape.heads), group_(shape.heads / shape.kv_heads), positions_(shape.slot_length) {
  const size_t half = shape.head_dim / 2;
  kv_.slots = shape.slots;
  kv_.kv_heads = shape.kv_heads;
  kv_.head_dim = shape.head_dim;
  kv_.length = Kv::padded_length(shape.slot_length);
  kv_.keys = arena->take<float>(shape.layers, shape.slots, shape.kv_heads, kv_.length, shape.head_dim);
  kv_.values =
      arena->take<float>(shape.layers, shape.slots, shape.kv_heads, kv_.length, padded_head_dim(shape.head_dim));
  for (int i = 0; i < shape.ropes; ++i) {
    angles_[i].cosines = arena->take<float>(positions_, half);
    angles_[i].sines = arena->take<float>(positions_, half);
    angles_[i].known = arena->take<bool>(positions_);
  }
  pieces_ = arena->take<Piece>(shape.rows);
  scratch_stride_ = attention_scratch(std::max(kTaskQueries, group_), shape.head_dim);
  scratch_ = arena->take<float>(threads, scratch_stride_);
}

void Attention::fill_angles(Angles* angles, const RowInfo* rows, int n_rows, const RopeParams& rope) {
  if (angles->frequencies != rope.frequencies) {
    std::memset(angles->known, 0, positions_);
    angles->frequencies = rope.frequencies;
  }
  const int half = kv_.head_dim / 2;
  for (int r = 0; r < n_rows; ++r) {
    const int position = rows[r].position;
    if (angles->known[position]) continue;
    float* cosines = angles->cosines + static_cast<size_t>(position) * half;
    float* sines = angles->sines + static_cast<size_t>(position) * half;
    for (int i = 0; i < rope.dims / 2; ++i) {
      const double angle = static_cast<double>(position) * rope.frequencies[i];  // float32 would lose 1e-4 at 4,096
      cosines[i] = static_cast<float>(std::cos(angle) * rope.magnitude);
      sines[i] = static_cast<float>(std::sin(angle) * rope.magnitude);
    }
    angles->known[position] = true;
  }
}

namespace {

void norm_heads(const VectorKernels& kernels, const Norm& norm, int heads, int head_dim, float* x) {
  if (norm.kind == NormKind::none) return;
  const LinearInput input{x, head_dim, head_dim, nullptr, norm, Activation::none, nullptr};
  for (int h = 0; h < heads; ++h) kernels.produce(input, h, x + h * head_dim);
}

// Sums of two vectors' products.
struct Cosine {
  double dot = 0, old_square = 0, new_square = 0;

  void add(const float* was, const float* is, int n) {
    for (int i = 0; i < n; ++i) {
      dot += static_cast<double>(was[i]) * is[i];
      old_square += static_cast<double>(was[i]) * was[i];
      new_square += static_cast<double>(is[i]) * is[i];
    }
  }

  float distance() const {
    const double lengths = std::sqrt(old_square * new_square);
    return lengths > 0 ? static_cast<float>(std::max(0.0, 1 - dot / lengths)) : 0.0f;
  }
};

}  // namespace

void Attention::store(const VectorKernels& kernels, Pool& pool, const AttentionLayer& layer, float* qkv, int stride,
                      const RowInfo* rows, int n_rows) {
  const int head_dim = kv_.head_dim, kv_heads = kv_.kv_heads;
  const RopeParams& rope = layer.rope;
  Angles* angles = &angles_[rope.table];
  if (rope.kind != Rope::none) fill_angles(angles, rows, n_rows, rope);
  pool.parallel((n_rows + kStoreRows - 1) / kStoreRows, [&](int task, int) {
    for (int r = task * kStoreRows; r < std::min((task + 1) * kStoreRows, n_rows); ++r) {
      const size_t place = rows[r].place;
      float* q = qkv + static_cast<ptrdiff_t>(r) * stride;
      float* k = q + heads_ * head_dim;
      const float* v = k + kv_heads * head_dim;
      norm_heads(kernels, layer.q_norm, heads_, head_dim, q);
      norm_heads(kernels, layer.k_norm, kv_heads, head_dim, k);
      if (rope.kind != Rope::none) {
        const size_t at = static_cast<size_t>(rows[r].position) * (head_dim / 2);
        kernels.rotate(q, heads_ + kv_heads, head_dim, rope.kind, rope.dims, angles->cosines + at, angles->sines + at);
      }
      if (rope.temperature != 0) {
        const double periods = std::floor(rows[r].position / rope.temperature_length);
        const float factor = static_cast<float>(1 + rope.temperature * std::log1p(periods));
        for (int i = 0; i < heads_ * head_dim; ++i) q[i] *= factor;
      }
      Cosine cosine;
      for (int h = 0; h < kv_heads; ++h, k += head_dim, v += head_dim) {
        float* key = kv_.key(layer.index, rows[r].slot, h, place);
        for (int d = 0; d < head_dim; ++d) key[d * kKeyPanel] = k[d];
        float* values = kv_.value(layer.index, rows[r].slot, h, place);
        if (rows[r].drift != nullptr) cosine.add(values, v, head_dim);
        std::memcpy(values, v, sizeof(float) * head_dim);
      }
      if (rows[r].drift != nullptr) *rows[r].drift += cosine.distance();
    }
  });
}

void Attention::read(int layer, int slot, int length, float* k, float* v) const {
  const int head_dim = kv_.head_dim;
  for (int place = 0; place < length; ++place)
    for (int h = 0; h < kv_.kv_heads; ++h, k += head_dim, v += head_dim) {
      const float* key = kv_.key(layer, slot, h, place);
      for (int d = 0; d < head_dim; ++d) k[d] = key[d * kKeyPanel];
      std::memcpy(v, kv_.value(layer, slot, h, place), sizeof(float) * head_dim);
    }
}

void Attention::write(int layer, int slot, int length, const float* k, const float* v) {
  const int head_dim = kv_.head_dim;
  for (int place = 0; place < length; ++place)
    for (int h = 0; h < kv_.kv_heads; ++h, k += head_dim, v += head_dim) {
      float* key = kv_.key(layer, slot, h, place);
      for (int d = 0; d < head_dim; ++d) key[d * kKeyPanel] = k[d];
      std::memcpy(kv_.value(layer, slot, h, place), v, sizeof(float) * head_dim);
    }
}

void Attention::attend(const VectorKernels& kernels, Pool& pool, const AttentionLayer& layer, const float* qkv,
                       int stride, const RowInfo* rows, int n_rows, float* out) {
  const int head_dim = kv_.head_dim, kv_heads = kv_.kv_heads;
  const int most = std::max(1, kTaskQueries / group_), least = std::min(most, (kMinQueries + group_ - 1) / group_);
  const int64_t shared = static_cast<int64_t>(n_rows) * kv_heads / (kTasksPerThread * pool.threads());
  const int piece_rows = static_cast<int>(std::clamp<int64_t>(shared, least, most));
  int n_pieces = 0;
  for (int first = 0; first < n_rows;) {
    int last = first + 1;
    while (last < n_rows && last - first < piece_rows && rows[last].slot == rows[first].slot) ++last;
    pieces_[n_pieces++] = {first, last - first};
    first = last;
  }
  pool.parallel(n_pieces * kv_heads, [&](int task, int thread) {
    const Piece& piece = pieces_[task / kv_heads];
    const int h = task % kv_heads, column = h * group_ * head_dim, slot = rows[piece.first].slot;
    kernels.attend({.q = qkv + static_cast<ptrdiff_t>(piece.first) * stride + column,
                    .stride = stride,
                    .out = out + static_cast<ptrdiff_t>(piece.first) * heads_ * head_dim + column,
                    .out_stride = heads_ * head_dim,
                    .rows = rows + piece.first,
                    .n_rows = piece.count,
                    .group = group_,
                    .head_dim = head_dim,
                    .keys = kv_.head_keys(layer.index, slot, h),
                    .values = kv_.head_values(layer.index, slot, h),
                    .scale = layer.scale,
                    .scratch = scratch_ + thread * scratch_stride_});
  });
}

}  // namespace ld
