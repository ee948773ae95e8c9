// Matrix products in plain C++: the reference that every other kernel row is tested against, with the same blocks and
// order of sums. Weights are unpacked to signed bytes, input bytes are signed. No attention is paid to speed.
#include <cmath>
#include <cstring>

#include "cpu/gemm.h"

namespace ld {
namespace {

constexpr int kPanel = 8;
constexpr int kRows = 4;

#include "cpu/gemm.inl"

float half(const uint8_t* p, bool bfloat = false) {
  float value;
  type_traits(static_cast<int32_t>(bfloat ? TensorType::bf16 : TensorType::f16))->decode(p, &value, 1);
  return value;
}

void quantize(const float* x, int k, const Int8Row& row) {
  for (int b = 0; b < k / kBlock; ++b, x += kBlock) {
    uint32_t largest = 0;  // as bits, so that NaN and infinity come out on top
    for (int i = 0; i < kBlock; ++i) {
      uint32_t bits;
      memcpy(&bits, x + i, 4);
      if ((bits & 0x7fffffff) > largest) largest = bits & 0x7fffffff;
    }
    float max;
    memcpy(&max, &largest, 4);
    const bool finite = largest < 0x7f800000, tiny = max < 0x1p-100f;
    const float inverse = finite && !tiny ? 127.0f / max : 0.0f;
    int32_t sum = 0;
    for (int i = 0; i < kBlock; ++i) {
      const int q = inverse == 0.0f ? 0 : static_cast<int>(nearbyintf(x[i] * inverse));
      row.q[b * kBlock + i] = static_cast<uint8_t>(q);
      sum += q;
    }
    row.scale[b] = !finite ? NAN : tiny ? 0.0f : max / 127.0f;
    row.scaled_sum[b] = row.scale[b] * static_cast<float>(sum);
    row.sum[b] = sum;
  }
}

void int8_unpack(const PackedTraits& t, const uint8_t* p, int k, Int8Chunk* chunk) {
  for (int k0 = 0; k0 < k; k0 += t.record) {
    const Record record = record_at(t, p);
    p = record.next;
    for (int c = 0; c < kPanel; ++c) {
      const float d = half(record.d + 2 * c, t.bfloat), dmin = t.minimum ? half(record.dmin + 2 * c) : 0.0f;
      for (int i = 0; i < t.record / t.span; ++i) {
        const int at = i * kPanel + c, to = (k0 / t.span + i) * kPanel + c;
        const int code = t.joint ? record.codes[at] & 15 : static_cast<int8_t>(record.codes[at]);
        chunk->scale[to] = t.super ? d * static_cast<float>(code) : d;
        if (!t.minimum) continue;
        const int min_code = t.joint ? record.codes[at] >> 4 : record.min_codes[at];
        chunk->minimum[to] = t.super ? -dmin * static_cast<float>(min_code) : dmin;
      }
      const int low = low_bits(t.bits);
      for (int i = 0; i < t.record; ++i) {
        const auto stored = [&](const uint8_t* part, int bits) {
          const int bit = i / 4 * bits;  // counted through bytes that belong to the same i % 4
          return part[(bit / 8 * kPanel + c) * 4 + i % 4] >> bit % 8 & ((1 << bits) - 1);
        };
        int q = stored(record.q, low);
        if (t.bits != low) q |= stored(record.high, t.bits - low) << low;
        q = t.table ? t.table[q] : q - t.offset;
        chunk->q[((k0 + i) / 4 * kPanel + c) * 4 + i % 4] = static_cast<uint8_t>(q);
      }
    }
  }
}

int32_t dot(const Int8Chunk& chunk, const uint8_t* x, int k0, int k1, int c) {
  int32_t sum = 0;
  for (int i = k0; i < k1; ++i) {
    sum += static_cast<int8_t>(chunk.q[(i / 4 * kPanel + c) * 4 + i % 4]) * static_cast<int8_t>(x[i]);
  }
  return sum;
}

void int8_tile(const Int8Tile& tile) {
  const Int8Chunk& chunk = *tile.chunk;
  const int sums = kBlock / chunk.span;
  for (int r = 0; r < tile.rows; ++r) {
    const uint8_t* x = tile.row.q + r * tile.q_stride;
    for (int c = 0; c < kPanel; ++c) {
      float* y = tile.out + r * tile.out_stride + c;
      for (int b = 0; b < chunk.k / kBlock; ++b) {
        float t = 0.0f;
        for (int i = b * kBlock; i < (b + 1) * kBlock; i += chunk.span) {
          const float scaled = static_cast<float>(dot(chunk, x, i, i + chunk.span, c));
          t = fmaf(scaled, chunk.scale[i / chunk.span * kPanel + c], t);
        }
        *y = fmaf(t, tile.row.scale[r * tile.block_stride + b], *y);
        for (int i = b * sums; chunk.minimum_used && i < (b + 1) * sums; ++i) {
          *y = fmaf(chunk.minimum[i * kPanel + c], tile.row.scaled_sum[r * tile.block_stride * sums + i], *y);
        }
      }
    }
  }
}

void float_unpack(PackedKind kind, const uint8_t* records, int k, float* w) {
  const TensorType type = kind == PackedKind::f16 ? TensorType::f16 : TensorType::bf16;
  type_traits(static_cast<int32_t>(type))->decode(records, w, static_cast<size_t>(k) * kPanel);
}

void float_tile(const FloatTile& tile) {
  for (int r = 0; r < tile.rows; ++r) {
    for (int c = 0; c < kPanel; ++c) {
      float y = tile.out[r * tile.out_stride + c];
      for (int i = 0; i < tile.k; ++i) y = fmaf(tile.w[i * kPanel + c], tile.x[r * tile.x_stride + i], y);
      tile.out[r * tile.out_stride + c] = y;
    }
  }
}

}  // namespace

const GemmKernels gemm_scalar = {kPanel,      kRows,     kRows,        0,          quantize,
                                 int8_unpack, int8_tile, float_unpack, float_tile, finish};

}  // namespace ld
