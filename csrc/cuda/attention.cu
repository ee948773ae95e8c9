// Attention over the state of a session: writing it, and the softmax over each row's interval in float32, a row's sums
// running over its positions in ascending order, whatever else is computed. Not here: the kernel on tensor cores and the
// choice between the two (attention_tensor.cu).
#include "cuda/attention.h"

namespace ld::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kMostHeadDim = 512, kPerLane = kMostHeadDim / kWarp;

// angles[r][i] = (cosine, sine) of row r's pair i, in double until the last: float32 would lose 1e-4 at 4,096.
__global__ void angles_kernel(RopeParams rope, const Row* rows, float* angles) {
  const int row = static_cast<int>(blockIdx.x), pairs = rope.dims / 2;
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    const double angle = static_cast<double>(rows[row].position) * rope.frequencies[i];
    float* to = angles + (static_cast<size_t>(row) * pairs + i) * 2;
    to[0] = static_cast<float>(cos(angle) * rope.magnitude);
    to[1] = static_cast<float>(sin(angle) * rope.magnitude);
  }
}

// One head of one row, one warp: norm, then rotation. All lanes take part.
__device__ void turn_head(float* x, int head_dim, const Norm& norm, const RopeParams& rope, const float* angles,
                          float factor) {
  const int lane = threadIdx.x % kWarp;
  if (norm.kind != NormKind::none) {
    double sum = 0;
    float mean = 0;
    if (norm.kind == NormKind::layer) {
      for (int i = lane; i < head_dim; i += kWarp) sum += x[i];
      mean = static_cast<float>(warp_sum(sum) / head_dim);
      sum = 0;
    }
    for (int i = lane; i < head_dim; i += kWarp) sum += static_cast<double>(x[i] - mean) * (x[i] - mean);
    const float scale = static_cast<float>(1.0 / sqrt(warp_sum(sum) / head_dim + norm.eps));
    for (int i = lane; i < head_dim; i += kWarp) {
      x[i] = (x[i] - mean) * scale * norm.weight[i] + (norm.bias ? norm.bias[i] : 0);
    }
    __syncwarp();
  }
  if (rope.kind != Rope::none) {
    const int pairs = rope.dims / 2;
    for (int i = lane; i < pairs; i += kWarp) {
      float* a = rope.kind == Rope::half ? x + i : x + 2 * i;
      float* b = rope.kind == Rope::half ? a + pairs : a + 1;
      const float u = *a, v = *b, cosine = angles[2 * i], sine = angles[2 * i + 1];
      *a = u * cosine - v * sine;
      *b = u * sine + v * cosine;
    }
    __syncwarp();
  }
  if (factor != 1) {
    for (int i = lane; i < head_dim; i += kWarp) x[i] *= factor;
  }
  __syncwarp();
}

// One block per row.
__global__ void store_kernel(AttentionLayer layer, State state, int heads, float* qkv, int stride, const Row* rows,
                             const float* angles, float* drift) {
  const int row = static_cast<int>(blockIdx.x), warp = threadIdx.x / kWarp, head_dim = state.head_dim;
  const Row at = rows[row];
  float* q = qkv + static_cast<ptrdiff_t>(row) * stride;
  float* k = q + heads * head_dim;
  float* v = k + state.kv_heads * head_dim;
  const RopeParams& rope = layer.rope;
  const float* mine = angles + static_cast<size_t>(row) * rope.dims;
  float factor = 1;
  if (rope.temperature != 0) {
    const double periods = floor(static_cast<double>(at.position) / rope.temperature_length);
    factor = static_cast<float>(1 + rope.temperature * log1p(periods));
  }
  for (int head = warp; head < heads; head += kWarps) {
    turn_head(q + head * head_dim, head_dim, layer.q_norm, rope, mine, factor);
  }
  for (int head = warp; head < state.kv_heads; head += kWarps) {
    turn_head(k + head * head_dim, head_dim, layer.k_norm, rope, mine, 1);
  }
  RopeParams still{};
  still.kind = Rope::none;
  for (int head = warp; head < state.kv_heads; head += kWarps) {
    turn_head(v + head * head_dim, head_dim, layer.v_norm, still, mine, 1);
  }
  __syncthreads();
  double dot = 0, old_square = 0, new_square = 0;
  const size_t to = state_at(state, at.slot, at.place, 0);
  for (int i = threadIdx.x; i < state.kv_heads * head_dim; i += kThreads) {
    if (drift) {
      const double was = state.values[to + i], is = v[i];
      dot += was * is;
      old_square += was * was;
      new_square += is * is;
    }
    state.keys[to + i] = k[i];
    state.values[to + i] = v[i];
  }
  if (!drift) return;
  dot = block_sum<kThreads>(dot);
  old_square = block_sum<kThreads>(old_square);
  new_square = block_sum<kThreads>(new_square);
  if (threadIdx.x == 0) {
    const double lengths = sqrt(old_square * new_square);
    drift[row] = lengths > 0 ? static_cast<float>(fmax(0.0, 1 - dot / lengths)) : 0.0f;
  }
}

// One warp per row and query head, the softmax carried along (Milakov and Gimelshein, arXiv:1805.02867).
__global__ void attend_kernel(Attend a) {
  const State& state = a.state;
  const int task = static_cast<int>(blockIdx.x) * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (task >= a.n_rows * a.heads) return;  // the whole warp
  const int row = task / a.heads, head = task % a.heads, head_dim = state.head_dim;
  const Row at = a.rows[row];
  const float* q = a.query(row, head);
  float query[kPerLane], sum[kPerLane] = {};
  for (int i = 0; i < kPerLane; ++i) {
    const int d = i * kWarp + lane;
    query[i] = d < head_dim ? q[d] * a.scale : 0;
  }
  const size_t step = static_cast<size_t>(state.kv_heads) * head_dim;
  const size_t first = state_at(state, at.slot, at.lo, head / a.group());
  const float *key = state.keys + first, *value = state.values + first;
  float largest = -INFINITY, total = 0;
  for (int place = at.lo; place < at.hi; ++place, key += step, value += step) {
    if (place == at.hidden) continue;  // the whole warp
    float dot = 0;
    for (int i = 0; i < kPerLane; ++i) {
      const int d = i * kWarp + lane;
      if (d < head_dim) dot += query[i] * key[d];
    }
    dot = warp_sum(dot);
    if (dot > largest) {
      const float shrink = expf(largest - dot);
      total *= shrink;
      for (int i = 0; i < kPerLane; ++i) sum[i] *= shrink;
      largest = dot;
    }
    const float weight = expf(dot - largest);
    total += weight;
    for (int i = 0; i < kPerLane; ++i) {
      const int d = i * kWarp + lane;
      if (d < head_dim) sum[i] += weight * value[d];
    }
  }
  float* to = a.result(row, head);
  for (int i = 0; i < kPerLane; ++i) {
    const int d = i * kWarp + lane;
    if (d < head_dim) to[d] = sum[i] / total;
  }
}

}  // namespace

void store(cudaStream_t stream, const AttentionLayer& layer, const State& state, int heads, float* qkv, int stride,
           const Row* rows, int n_rows, float* angles, float* drift) {
  if (layer.rope.kind != Rope::none) {
    LD_LAUNCH(angles_kernel, dim3(n_rows), kThreads, stream, layer.rope, rows, angles);
  }
  LD_LAUNCH(store_kernel, dim3(n_rows), kThreads, stream, layer, state, heads, qkv, stride, rows, angles, drift);
}

void attend_in_float32(cudaStream_t stream, const Attend& a) {
  const int64_t tasks = static_cast<int64_t>(a.n_rows) * a.heads;
  LD_LAUNCH(attend_kernel, dim3(static_cast<unsigned>((tasks + kWarps - 1) / kWarps)), kThreads, stream, a);
}

}  // namespace ld::cuda
