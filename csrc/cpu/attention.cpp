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
    : heads_(shape.heads), positions_(shape.slot_length) {
  int group = 1;
  for (int layer = 0; layer < shape.layers; ++layer) {
    const auto [kv_heads, head_dim] = shape.kv[layer];
    Kv kv{nullptr, nullptr, kv_heads, head_dim, Kv::padded_length(shape.slot_length)};
    kv.keys = arena->take<float>(shape.slots, kv_heads, kv.length, head_dim);
    kv.values = arena->take<float>(shape.slots, kv_heads, kv.length, padded_head_dim(head_dim));
    kv_.push_back(kv);
    group = std::max(group, shape.heads / kv_heads);
  }
  const int head_dim = shape.max_head_dim();
  pairs_ = head_dim / 2;
  for (int i = 0; i < shape.ropes; ++i) {
    angles_[i].cosines = arena->take<float>(positions_, pairs_);
    angles_[i].sines = arena->take<float>(positions_, pairs_);
    angles_[i].known = arena->take<bool>(positions_);
  }
  pieces_ = arena->take<Piece>(shape.rows);
  scratch_stride_ = attention_scratch(std::max(kTaskQueries, group), head_dim);
  scratch_ = arena->take<float>(threads, scratch_stride_);
}

void Attention::fill_angles(Angles* angles, const RowInfo* rows, int n_rows, const RopeParams& rope) {
  if (angles->frequencies != rope.frequencies) {
    std::memset(angles->known, 0, positions_);
    angles->frequencies = rope.frequencies;
  }
  for (int r = 0; r < n_rows; ++r) {
    const int position = rows[r].position;
    if (angles->known[position]) continue;
    float* cosines = angles->cosines + static_cast<size_t>(position) * pairs_;
    float* sines = angles->sines + static_cast<size_t>(position) * pairs_;
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
  const Kv& kv = kv_[layer.index];
  const int head_dim = kv.head_dim, kv_heads = kv.kv_heads;
  const RopeParams& rope = layer.rope;
  Angles* angles = &angles_[rope.table];
  if (rope.kind != Rope::none) fill_angles(angles, rows, n_rows, rope);
  pool.parallel((n_rows + kStoreRows - 1) / kStoreRows, [&](int task, int) {
    for (int r = task * kStoreRows; r < std::min((task + 1) * kStoreRows, n_rows); ++r) {
      const size_t place = rows[r].place;
      float* q = qkv + static_cast<ptrdiff_t>(r) * stride;
      float* k = q + heads_ * head_dim;
      float* v = k + kv_heads * head_dim;
      norm_heads(kernels, layer.q_norm, heads_, head_dim, q);
      norm_heads(kernels, layer.k_norm, kv_heads, head_dim, k);
      norm_heads(kernels, layer.v_norm, kv_heads, head_dim, v);
      if (rope.kind != Rope::none) {
        const size_t at = static_cast<size_t>(rows[r].position) * pairs_;
        kernels.rotate(q, heads_ + kv_heads, head_dim, rope.kind, rope.dims, angles->cosines + at, angles->sines + at);
      }
      if (rope.temperature != 0) {
        const double periods = std::floor(rows[r].position / rope.temperature_length);
        const float factor = static_cast<float>(1 + rope.temperature * std::log1p(periods));
        for (int i = 0; i < heads_ * head_dim; ++i) q[i] *= factor;
      }
      Cosine cosine;
      for (int h = 0; h < kv_heads; ++h, k += head_dim, v += head_dim) {
        float* key = kv.key(rows[r].slot, h, place);
        for (int d = 0; d < head_dim; ++d) key[d * kKeyPanel] = k[d];
        float* values = kv.value(rows[r].slot, h, place);
        if (rows[r].drift != nullptr) cosine.add(values, v, head_dim);
        std::memcpy(values, v, sizeof(float) * head_dim);
      }
      if (rows[r].drift != nullptr) *rows[r].drift += cosine.distance();
    }
  });
}

void Attention::read(int layer, int slot, int length, float* k, float* v) const {
  const Kv& kv = kv_[layer];
  const int head_dim = kv.head_dim;
  for (int place = 0; place < length; ++place)
    for (int h = 0; h < kv.kv_heads; ++h, k += head_dim, v += head_dim) {
      const float* key = kv.key(slot, h, place);
      for (int d = 0; d < head_dim; ++d) k[d] = key[d * kKeyPanel];
      std::memcpy(v, kv.value(slot, h, place), sizeof(float) * head_dim);
    }
}

void Attention::write(int layer, int slot, int length, const float* k, const float* v) {
  const Kv& kv = kv_[layer];
  const int head_dim = kv.head_dim;
  for (int place = 0; place < length; ++place)
    for (int h = 0; h < kv.kv_heads; ++h, k += head_dim, v += head_dim) {
      float* key = kv.key(slot, h, place);
      for (int d = 0; d < head_dim; ++d) key[d * kKeyPanel] = k[d];
      std::memcpy(kv.value(slot, h, place), v, sizeof(float) * head_dim);
    }
}

void Attention::attend(const VectorKernels& kernels, Pool& pool, const AttentionLayer& layer, const float* qkv,
                       int stride, const RowInfo* rows, int n_rows, float* out) {
  const Kv& kv = kv_[layer.index];
  const int head_dim = kv.head_dim, kv_heads = kv.kv_heads, group = heads_ / kv_heads;
  const int most = std::max(1, kTaskQueries / group), least = std::min(most, (kMinQueries + group - 1) / group);
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
    const int h = task % kv_heads, column = h * group * head_dim, slot = rows[piece.first].slot;
    kernels.attend({.q = qkv + static_cast<ptrdiff_t>(piece.first) * stride + column,
                    .stride = stride,
                    .out = out + static_cast<ptrdiff_t>(piece.first) * heads_ * head_dim + column,
                    .out_stride = heads_ * head_dim,
                    .rows = rows + piece.first,
                    .n_rows = piece.count,
                    .group = group,
                    .head_dim = head_dim,
                    .keys = kv.head_keys(slot, h),
                    .values = kv.head_values(slot, h),
                    .scale = layer.scale,
                    .scratch = scratch_ + thread * scratch_stride_});
  });
}

}  // namespace ld
