// Fast arithmetic (cpu/fold.h): weights of any type of integers folded to bytes with one scale per group of 128 values, the
// same bits as every kernel row of the processor. Not here: where the copies lie (forms.cu).
#include "cuda/product.h"

namespace ld::cuda {
namespace {

constexpr int kThreads = 256;

// Sixteen bits of an integer, or zeros of what is none.
__device__ inline int16_t low_half(float x) { return static_cast<int16_t>(static_cast<int>(rintf(x))); }

// A warp folds a group, four values a lane; those past k count as none.
template <class Format>
__global__ void fold_kernel(Source source, uint8_t* to, size_t step) {
  constexpr float kHalf = static_cast<float>(1 << (Format::kReach - 1)), kTop = 2 * kHalf - 1;
  constexpr int kCentre = Format::kMinimum && Format::kReach < 8 ? 1 << (Format::kReach - 1) : 0;
  const int k = source.w.k, groups = (k + kGroup - 1) / kGroup, lane = threadIdx.x % kWarp;
  const size_t item = static_cast<size_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int column = static_cast<int>(item / groups), group = static_cast<int>(item % groups);
  if (column >= source.columns) return;  // the whole warp
  const uint8_t* row = source.data ? source.data[blockIdx.z] : source.w.data;
  row += static_cast<size_t>(source.column + column) * source.w.row_bytes;
  to += blockIdx.z * step;
  const int first = group * kGroup + lane * 4;
  const bool mine = first < k;
  float scale = 0, minimum = 0;
  uint32_t four = 0;
  if (mine) {
    const uint8_t* block = row + static_cast<size_t>(first / Format::kBlock) * Format::kBytes;
    four = Format::four(block, first % Format::kBlock);
    scale = Format::scale(block, first % Format::kBlock) * (1.0f / (1 << Format::kWide));
    minimum = Format::minimum(block, first % Format::kBlock);
  }
  float reach = fabsf(scale) * kHalf;
  if constexpr (Format::kMinimum) reach = fmaxf(fmaxf(reach, fabsf(minimum)), fabsf(fmaf(scale, kTop, minimum)));
  for (int lanes = 1; lanes < kWarp; lanes *= 2) reach = fmaxf(reach, __shfl_xor_sync(kWholeWarp, reach, lanes));
  const float of_group = reach * (1 / 127.0f), inverse = of_group > 0 ? 1 / of_group : 0;
  // In 1/256: a weight is byte `by` / 2^15 of its distance from the middle, plus where the middle is, plus what makes the
  // byte unsigned and rounds.
  const float unit = scale * inverse, b = unit * (256 * kHalf);
  float p = 0x8080;
  if constexpr (Format::kMinimum) p = fmaf(minimum * 256.0f, inverse, fmaf(unit, 256 * kHalf, p));
  const int16_t by = low_half(b > 32767.0f ? 32767.0f : b), plus = low_half(p);
  uint32_t folded = 0;
  for (int j = 0; j < 4; ++j) {
    const int q = static_cast<int8_t>(four >> 8 * j) * (1 << Format::kWide) - kCentre;
    const int16_t value = static_cast<int16_t>(q * (1 << (16 - Format::kReach)));
    const int16_t scaled = static_cast<int16_t>(((value * by >> 14) + 1) >> 1);
    folded |= ((static_cast<uint16_t>(scaled + plus) >> 8) ^ 0x80u) << 8 * j;
  }
  if (mine) memcpy(to + static_cast<size_t>(column) * k + first, &folded, 4);
  if (lane == 0) {
    const size_t at = static_cast<size_t>(source.columns) * k + (static_cast<size_t>(group) * source.columns + column) * 4;
    memcpy(to + at, &of_group, 4);
  }
}

}  // namespace

void fold(cudaStream_t stream, const Source& source, uint8_t* to, size_t step) {
  const size_t groups = static_cast<size_t>(source.columns) * ((source.w.k + kGroup - 1) / kGroup);
  const dim3 grid(static_cast<unsigned>((groups + kThreads / kWarp - 1) / (kThreads / kWarp)), 1, source.experts);
  with_format(source.w.type, [&]<class Format>() {
    if constexpr (Format::kInteger) LD_LAUNCH((fold_kernel<Format>), grid, kThreads, stream, source, to, step);
  });
}

}  // namespace ld::cuda
