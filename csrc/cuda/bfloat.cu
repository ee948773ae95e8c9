// Weights rounded to bfloat16, to nearest even, for products that read both sides so (blas.cu, tensor.cu).
#include "cuda/product.h"

namespace ld::cuda {
namespace {

constexpr int kThreads = 256;

// A thread makes eight values.
template <class Format>
__global__ void weights_kernel(Source source, uint8_t* to, size_t step) {
  const int k = source.w.k;
  const size_t at = (static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (at >= static_cast<size_t>(source.columns) * k) return;
  const uint8_t* from = source.data ? source.data[blockIdx.z] : source.w.data;
  from += (source.column + at / k) * source.w.row_bytes;
  float values[8];
  decode_eight<Format>(from, static_cast<int>(at % k), k, values);
  uint32_t pairs[4];
  for (int j = 0; j < 4; ++j) pairs[j] = bfloat_pair(values[2 * j], values[2 * j + 1]);
  memcpy(__builtin_assume_aligned(to + blockIdx.z * step + at * sizeof(uint16_t), 16), pairs, sizeof pairs);
}

}  // namespace

void round(cudaStream_t stream, const Source& source, uint8_t* to, size_t step) {
  const size_t eights = static_cast<size_t>(source.columns) * source.w.k / 8;
  const dim3 grid(static_cast<unsigned>((eights + kThreads - 1) / kThreads), 1, source.experts);
  with_format(source.w.type, [&]<class Format>() {
    if constexpr (Format::kInteger) LD_LAUNCH((weights_kernel<Format>), grid, kThreads, stream, source, to, step);
  });
}

}  // namespace ld::cuda
