// Attention on tensor cores: 64 queries of one key head a block, 32 places at a time, the softmax carried along in float32
// (Dao, arXiv:2307.08691); of heads past 128 values half as many of both, each query by two warps. Every vector is divided by
// a power of two near its largest value and split into two halves in float16, high + low, so a product is three products of
// halves (high high + high low + low high) and as good as float32. A row's sums run over tiles of places that begin at
// multiples of their size; a tile that it does not see leaves its bits as they are, so they depend on nothing but the row. No
// split along places. Not here: head sizes past the table (attention.cu).
#include <iterator>

#include "cuda/attention.h"

namespace ld::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr float kHeadroom = 10;  // weights are up to 2^10, which leaves the small ones more bits in float16
constexpr float kLog2E = 1.4426950408889634f;

// Vectors are divided by 2^(exponent - 127).
__device__ inline uint32_t exponent_of(uint32_t largest) { return min(max(largest >> 23, 64u), 253u); }
__device__ inline float power(uint32_t exponent) { return float_from_bits(exponent << 23); }
__device__ inline float inverse_power(uint32_t exponent) { return float_from_bits((254 - exponent) << 23); }

__device__ inline uint32_t magnitude(float x) { return bits_of(x) & 0x7fffffffu; }  // NaN and infinity on top

// high + low = a, b to 22 bits
__device__ inline void split(float a, float b, uint32_t& high, uint32_t& low) {
  const uint16_t first = half_bits(a), second = half_bits(b);
  high = first | static_cast<uint32_t>(second) << 16;
  low = half_bits(a - half_value(first)) | static_cast<uint32_t>(half_bits(b - half_value(second))) << 16;
}

// c += a b
__device__ inline void multiply_split(float (&c)[4], const uint32_t (&a_high)[4], const uint32_t (&a_low)[4],
                                      const uint32_t (&b_high)[2], const uint32_t (&b_low)[2]) {
  multiply_halves(c, a_high, b_low);
  multiply_halves(c, a_low, b_high);
  multiply_halves(c, a_high, b_high);
}

__device__ inline uint32_t warp_max(uint32_t value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value = max(value, __shfl_xor_sync(kWholeWarp, value, step));
  return value;
}

// kPlaces places of one key head, halves in pairs.
template <int kDim, int kPlaces>
struct Tile {
  static constexpr int kKeyPitch = kDim / 2 + 4, kValuePitch = kPlaces / 2 + 4;  // fragments meet no bank twice
  uint32_t keys[2][kPlaces][kKeyPitch];    // high and low; pairs of neighbouring values
  uint32_t values[2][kDim][kValuePitch];   // pairs of neighbouring places
  float key_power[kPlaces];                // keys were divided by it
  float value_shift[kPlaces];              // values by 2 to the power of it; NaN where one is not finite
  float value_inverse[kPlaces];            // 2^-value_shift

  // Places [first, first + kPlaces), zeros outside [lo, hi). All threads of the block take part.
  __device__ void load(const State& state, int slot, int head, int first, int lo, int hi) {
    constexpr int kTogether = kDim > 128 ? 2 : 4, kEach = kPlaces / kWarps;  // as registers allow
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, head_dim = state.head_dim;
    const auto present = [&](int place) { return place >= lo && place < hi; };
    for (int part = 0; part < kEach; part += kTogether) {
      const int at = warp * kEach + part;
      float2 pairs[kTogether][(kDim + 63) / 64];
      LD_UNROLL for (int j = 0; j < kTogether; ++j) {
        const int place = first + at + j;
        const float* from = state.keys + state_at(state, slot, place, head);
        LD_UNROLL for (int i = 0; i < (kDim + 63) / 64; ++i) {
          const int d = i * 64 + lane * 2;
          pairs[j][i] = present(place) && d < head_dim ? *reinterpret_cast<const float2*>(from + d) : float2{0, 0};
        }
      }
      LD_UNROLL for (int j = 0; j < kTogether; ++j) {
        uint32_t largest = 0;
        LD_UNROLL for (int i = 0; i < (kDim + 63) / 64; ++i) {
          largest = max(largest, max(magnitude(pairs[j][i].x), magnitude(pairs[j][i].y)));
        }
        const uint32_t exponent = exponent_of(warp_max(largest));
        const float factor = inverse_power(exponent);
        LD_UNROLL for (int i = 0; i < (kDim + 63) / 64; ++i) {
          const int word = i * 32 + lane;
          if (word >= kDim / 2) continue;
          split(pairs[j][i].x * factor, pairs[j][i].y * factor, keys[0][at + j][word], keys[1][at + j][word]);
        }
        if (lane == 0) key_power[at + j] = power(exponent);
      }
    }
    for (int part = 0; part < kEach; part += kTogether) {
      const int at = warp * kEach + part;
      float each[kTogether][kDim / kWarp];
      LD_UNROLL for (int j = 0; j < kTogether; ++j) {
        const int place = first + at + j;
        const float* from = state.values + state_at(state, slot, place, head);
        LD_UNROLL for (int i = 0; i < kDim / kWarp; ++i) {
          const int d = i * kWarp + lane;
          each[j][i] = present(place) && d < head_dim ? from[d] : 0;
        }
      }
      LD_UNROLL for (int j = 0; j < kTogether; ++j) {
        uint32_t largest = 0;
        LD_UNROLL for (int i = 0; i < kDim / kWarp; ++i) largest = max(largest, magnitude(each[j][i]));
        largest = warp_max(largest);
        const bool finite = largest < 0x7f800000u;
        const uint32_t exponent = exponent_of(largest);
        LD_UNROLL for (int i = 0; i < kDim / kWarp; ++i) {
          each[j][i] = finite ? each[j][i] * inverse_power(exponent) : 0;
        }
        if (lane == 0) {
          value_shift[at + j] = finite ? static_cast<float>(static_cast<int>(exponent) - 127) : NAN;
          value_inverse[at + j] = inverse_power(exponent);
        }
      }
      LD_UNROLL for (int j = 0; j < kTogether; j += 2) {
        LD_UNROLL for (int i = 0; i < kDim / kWarp; ++i) {
          const int d = i * kWarp + lane, word = (at + j) / 2;
          split(each[j][i], each[j + 1][i], values[0][d][word], values[1][d][word]);
        }
      }
    }
  }
};

// Block (x, y): as many rows from x on as have kQueries queries of key head y between them. A warp has 16 queries, and a lane
// parts of two of them, `group` and `group` + 8, as the fragments of mma.m16n8k16 lie. Where kShare is 2, two warps have the
// same queries, each half of their values: of a score each has a part, which it tells the other.
template <int kDim, int kPlaces, int kShare>
__global__ void __launch_bounds__(kThreads, kDim > 64 ? 2 : 3) tensor_kernel(Attend a) {
  constexpr int kQueries = 16 * kWarps / kShare, kTiles = kPlaces / 8, kPart = kDim / kShare, kSteps = kPart / 16;
  __shared__ Tile<kDim, kPlaces> tile;
  __shared__ Row seen[kQueries];
  __shared__ float told[kShare == 1 ? 1 : kTiles * 4][kThreads];
  const int thread = threadIdx.x, lane = thread % kWarp, group = lane / 4, within = lane % 4;
  const int key_head = static_cast<int>(blockIdx.y), together = a.group(), most = kQueries / together;
  const int first = static_cast<int>(blockIdx.x) * most, count = min(most, a.n_rows - first);
  const int head_dim = a.state.head_dim, first_value = thread / kWarp % kShare * kPart;
  if (thread < count) seen[thread] = a.rows[first + thread];

  int line[2], head[2];  // of the block's rows, -1 = none
  uint32_t q_high[kSteps][4], q_low[kSteps][4];
  float q_power[2];
  LD_UNROLL for (int h = 0; h < 2; ++h) {
    const int query = thread / kWarp / kShare * 16 + group + h * 8;
    line[h] = query / together < count ? query / together : -1;
    head[h] = key_head * together + query % together;
    const float* from = a.query(first + max(line[h], 0), head[h]) + first_value;
    float2 pairs[kSteps * 2];
    uint32_t largest = 0;
    LD_UNROLL for (int i = 0; i < kSteps * 2; ++i) {
      const int d = i * 8 + within * 2;
      const bool present = line[h] >= 0 && first_value + d < head_dim;
      pairs[i] = {present ? from[d] * (a.scale * kLog2E) : 0, present ? from[d + 1] * (a.scale * kLog2E) : 0};
      largest = max(largest, max(magnitude(pairs[i].x), magnitude(pairs[i].y)));
    }
    for (int step = 1; step < 4; step *= 2) largest = max(largest, __shfl_xor_sync(kWholeWarp, largest, step));
    const uint32_t exponent = exponent_of(largest);
    const float factor = inverse_power(exponent);
    q_power[h] = power(exponent);
    LD_UNROLL for (int i = 0; i < kSteps * 2; ++i) {
      split(pairs[i].x * factor, pairs[i].y * factor, q_high[i / 2][i % 2 * 2 + h], q_low[i / 2][i % 2 * 2 + h]);
    }
  }
  __syncthreads();

  float sum[kPart / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
  for (int begin = 0, end; begin < count; begin = end) {  // rows of one slot
    const int slot = seen[begin].slot;
    int least = seen[begin].lo, last = seen[begin].hi;
    for (end = begin + 1; end < count && seen[end].slot == slot; ++end) {
      least = min(least, seen[end].lo);
      last = max(last, seen[end].hi);
    }
    int lo[2], hi[2], hidden[2];
    LD_UNROLL for (int h = 0; h < 2; ++h) {
      const bool mine = line[h] >= begin && line[h] < end;
      const Row& row = seen[mine ? line[h] : begin];
      lo[h] = mine ? row.lo : 0;
      hi[h] = mine ? row.hi : 0;
      hidden[h] = row.hidden;
    }
    for (int place0 = least / kPlaces * kPlaces; place0 < last; place0 += kPlaces) {
      const auto sees = [&](int h) { return lo[h] < place0 + kPlaces && hi[h] > place0; };
      const bool needed = sees(0) || sees(1);
      if (!__syncthreads_or(needed)) continue;  // a barrier too: the tile before has been read
      tile.load(a.state, slot, key_head, place0, least, last);
      __syncthreads();
      if (kShare == 1 && !__any_sync(kWholeWarp, needed)) continue;
      float score[kTiles][4] = {}, most_now[2] = {largest[0], largest[1]};
      LD_UNROLL for (int t = 0; t < kTiles; ++t) {
        LD_UNROLL for (int k = 0; k < kSteps; ++k) {
          const uint32_t *high = tile.keys[0][t * 8 + group] + first_value / 2 + k * 8 + within;
          const uint32_t *low = tile.keys[1][t * 8 + group] + first_value / 2 + k * 8 + within;
          multiply_split(score[t], q_high[k], q_low[k], {high[0], high[4]}, {low[0], low[4]});
        }
        LD_UNROLL for (int i = 0; i < 4; ++i) {
          score[t][i] *= q_power[i / 2] * tile.key_power[t * 8 + within * 2 + i % 2];
          if constexpr (kShare == 2) told[t * 4 + i][thread] = score[t][i];
        }
      }
      if constexpr (kShare == 2) __syncthreads();
      LD_UNROLL for (int t = 0; t < kTiles; ++t) {
        LD_UNROLL for (int i = 0; i < 4; ++i) {
          const int h = i / 2, column = t * 8 + within * 2 + i % 2, place = place0 + column;
          const bool visible = place >= lo[h] && place < hi[h] && place != hidden[h];
          if constexpr (kShare == 2) score[t][i] += told[t * 4 + i][thread ^ kWarp];
          score[t][i] = visible ? score[t][i] + tile.value_shift[column] : -INFINITY;
          most_now[h] = fmaxf(most_now[h], score[t][i]);
        }
      }
      LD_UNROLL for (int h = 0; h < 2; ++h) {
        for (int step = 1; step < 4; step *= 2) {
          most_now[h] = fmaxf(most_now[h], __shfl_xor_sync(kWholeWarp, most_now[h], step));
        }
        const float shrink = most_now[h] == largest[h] ? 1 : exp2f(largest[h] - most_now[h]);
        total[h] *= shrink;
        LD_UNROLL for (int n = 0; n < kPart / 8; ++n) {
          sum[n][h * 2] *= shrink;
          sum[n][h * 2 + 1] *= shrink;
        }
        largest[h] = most_now[h];
      }
      LD_UNROLL for (int t = 0; t < kTiles; ++t) {
        LD_UNROLL for (int i = 0; i < 4; ++i) {
          const float x = score[t][i];
          score[t][i] = x == -INFINITY ? 0 : exp2f(x - largest[i / 2] + kHeadroom);
          total[i / 2] += score[t][i] * tile.value_inverse[t * 8 + within * 2 + i % 2];
        }
      }
      LD_UNROLL for (int k = 0; k < kPlaces / 16; ++k) {
        uint32_t high[4], low[4];
        LD_UNROLL for (int i = 0; i < 4; ++i) {
          const float* from = score[k * 2 + i / 2] + i % 2 * 2;
          split(from[0], from[1], high[i], low[i]);
        }
        LD_UNROLL for (int n = 0; n < kPart / 8; ++n) {
          const uint32_t *v_high = tile.values[0][first_value + n * 8 + group] + k * 8 + within;
          const uint32_t *v_low = tile.values[1][first_value + n * 8 + group] + k * 8 + within;
          multiply_split(sum[n], high, low, {v_high[0], v_high[4]}, {v_low[0], v_low[4]});
        }
      }
    }
  }
  LD_UNROLL for (int h = 0; h < 2; ++h) {
    for (int step = 1; step < 4; step *= 2) total[h] += __shfl_xor_sync(kWholeWarp, total[h], step);
    if (line[h] < 0) continue;
    float* to = a.result(first + line[h], head[h]);
    LD_UNROLL for (int n = 0; n < kPart / 8; ++n) {
      LD_UNROLL for (int i = 0; i < 2; ++i) {
        const int d = first_value + n * 8 + within * 2 + i;
        if (d < head_dim) to[d] = sum[n][h * 2 + i] / total[h];
      }
    }
  }
}

// The first row that takes a layer serves it; the last one takes all.
struct Kernel {
  int head_dim, group;  // at most: values of a head, queries of a key
  void (*attend)(cudaStream_t, const Attend&);
};

template <int kDim, int kPlaces = 32, int kShare = 1>
constexpr Kernel on_tensor_cores() {
  constexpr int kQueries = 16 * kWarps / kShare;
  return {kDim, kQueries, [](cudaStream_t stream, const Attend& a) {
            const int rows = kQueries / a.group();
            const dim3 grid(static_cast<unsigned>((a.n_rows + rows - 1) / rows), static_cast<unsigned>(a.state.kv_heads));
            LD_LAUNCH((tensor_kernel<kDim, kPlaces, kShare>), grid, kThreads, stream, a);
          }};
}

constexpr Kernel kKernels[] = {
    on_tensor_cores<32>(),  on_tensor_cores<64>(),         on_tensor_cores<96>(),
    on_tensor_cores<128>(), on_tensor_cores<192, 16, 2>(), on_tensor_cores<256, 16, 2>(),
    {1 << 30, 1 << 30, attend_in_float32},
};

}  // namespace

void attend(cudaStream_t stream, const Attend& a, bool exact) {
  const Kernel* kernel = kKernels;
  const bool even = a.state.head_dim % 2 == 0;  // pairs are read at once
  if (exact || !even) kernel = std::end(kKernels) - 1;
  while (a.state.head_dim > kernel->head_dim || a.group() > kernel->group) ++kernel;
  kernel->attend(stream, a);
}

}  // namespace ld::cuda
