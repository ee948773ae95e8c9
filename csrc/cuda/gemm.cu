// Matrix products with weights as they lie in the file: each tile of weights is decoded to shared memory once and used for
// all rows of the block. Two kernels here: float32 on the ordinary cores for weights in floats, which keeps their
// precision, and bfloat16 tensor cores for quantised ones; int8.cu has a third, fold.cu one for folded weights. No split
// along k: a row's sum does not depend on how many rows there are.
#include <type_traits>

#include "cuda/product.h"

namespace ld::cuda {
namespace {

// ---- float32 ----

constexpr int kTile = 64, kDepth = 16, kThreads = 256;  // each thread: 4 rows x 4 columns

template <class Format>
__global__ void __launch_bounds__(kThreads) float_kernel(Product p, Rows rows) {
  __shared__ float w[kDepth][kTile + 4], x[kDepth][kTile + 4];
  const Share share = rows.share(p);
  const int row0 = share.first + static_cast<int>(blockIdx.y) * kTile, column0 = static_cast<int>(blockIdx.x) * kTile;
  if (row0 >= share.last) return;  // the whole block
  const int thread = threadIdx.x, mine_row = thread / 16 * 4, mine_column = thread % 16 * 4;
  float sum[4][4] = {};
  for (int k0 = 0; k0 < p.w.k; k0 += kDepth) {
    __syncthreads();
    if (thread < 128) {  // 64 channels x 2 x 8 values
      const int channel = thread / 2, k = k0 + thread % 2 * 8;
      float values[8] = {};
      if (column0 + channel < p.w.n && k < p.w.k) {
        decode_eight<Format>(share.data + static_cast<size_t>(column0 + channel) * p.w.row_bytes, k, p.w.k, values);
      }
      for (int j = 0; j < 8; ++j) w[thread % 2 * 8 + j][channel] = values[j];
    }
    const int row = row0 + thread / 4, k = thread % 4 * 4;
    const float* from = row < share.last ? p.x + rows.input(row) * p.x_stride + k0 + k : nullptr;
    for (int j = 0; j < 4; ++j) x[k + j][thread / 4] = from && k0 + k + j < p.w.k ? from[j] : 0;
    __syncthreads();
    LD_UNROLL for (int i = 0; i < kDepth; ++i) {
      LD_UNROLL for (int r = 0; r < 4; ++r)
        LD_UNROLL for (int c = 0; c < 4; ++c) sum[r][c] = fmaf(w[i][mine_column + c], x[i][mine_row + r], sum[r][c]);
    }
  }
  for (int r = 0; r < 4; ++r)
    for (int c = 0; c < 4; ++c) {
      const int row = row0 + mine_row + r, column = column0 + mine_column + c;
      if (row < share.last && column < p.w.n) put(p, row, column, sum[r][c]);
    }
}

// ---- bfloat16 tensor cores ----

constexpr int kTensorRows = 128, kTensorColumns = 128, kTensorDepth = 32;
constexpr int kPitch = kTensorDepth / 2 + 4;  // pairs; 20 words apart: fragments are read without bank conflicts

// Eight warps, two by four: each 64 rows x 32 columns, four by four tiles of 16 x 8.
template <class Format>
__global__ void __launch_bounds__(kThreads) tensor_kernel(Product p, Rows rows) {
  __shared__ uint32_t w[kTensorColumns][kPitch], x[kTensorRows][kPitch];  // pairs of bfloat16
  const Share share = rows.share(p);
  const int row0 = share.first + static_cast<int>(blockIdx.y) * kTensorRows;
  const int column0 = static_cast<int>(blockIdx.x) * kTensorColumns;
  if (row0 >= share.last) return;
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const int group = lane / 4, within = lane % 4;
  const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
  float sum[4][4][4] = {};
  for (int k0 = 0; k0 < p.w.k; k0 += kTensorDepth) {
    __syncthreads();
    for (int part = thread; part < kTensorColumns * kTensorDepth / 8; part += kThreads) {
      const int line = part / (kTensorDepth / 8), k = part % (kTensorDepth / 8) * 8;
      float values[8] = {};
      if (column0 + line < p.w.n && k0 + k < p.w.k) {
        decode_eight<Format>(share.data + static_cast<size_t>(column0 + line) * p.w.row_bytes, k0 + k, p.w.k, values);
      }
      for (int j = 0; j < 4; ++j) w[line][k / 2 + j] = bfloat_pair(values[2 * j], values[2 * j + 1]);
      float inputs[8] = {};
      const int row = row0 + line;
      if (row < share.last) {
        const float* from = p.x + rows.input(row) * p.x_stride + k0 + k;
        for (int j = 0; j < 8; ++j) inputs[j] = k0 + k + j < p.w.k ? from[j] : 0;
      }
      for (int j = 0; j < 4; ++j) x[line][k / 2 + j] = bfloat_pair(inputs[2 * j], inputs[2 * j + 1]);
    }
    __syncthreads();
    for (int i = 0; i < kTensorDepth / 2; i += 8) {  // sixteen values of k
      uint32_t b[4][2];
      LD_UNROLL for (int c = 0; c < 4; ++c) {
        const uint32_t* from = w[warp_column + c * 8 + group] + i + within;
        b[c][0] = from[0];
        b[c][1] = from[4];
      }
      LD_UNROLL for (int r = 0; r < 4; ++r) {
        const uint32_t *upper = x[warp_row + r * 16 + group] + i + within, *lower = upper + 8 * kPitch;
        const uint32_t a[4] = {upper[0], lower[0], upper[4], lower[4]};
        LD_UNROLL for (int c = 0; c < 4; ++c) multiply_tile(sum[r][c], a, b[c]);
      }
    }
  }
  LD_UNROLL for (int r = 0; r < 4; ++r) LD_UNROLL for (int c = 0; c < 4; ++c) LD_UNROLL for (int i = 0; i < 4; ++i) {
    const int row = row0 + warp_row + r * 16 + group + i / 2 * 8;
    const int column = column0 + warp_column + c * 8 + within * 2 + i % 2;
    if (row < share.last && column < p.w.n) put(p, row, column, sum[r][c][i]);
  }
}

void launch(cudaStream_t stream, const Product& product, const Rows& rows, int most_rows, int experts, Cores cores) {
  if (product.w.type == TensorType::i8) return multiply_folded(stream, product, rows, most_rows, experts);
  with_format(product.w.type, [&]<class Format>() {
    if constexpr (Format::kInteger) {
      if (cores == Cores::int8) return multiply_int8(stream, product, rows, most_rows, experts);
    }
    if constexpr (Format::kInteger || std::is_same_v<Format, BF16>) {
      if (cores == Cores::bfloat16) {
        const dim3 grid(parts(product.w.n, kTensorColumns), parts(most_rows, kTensorRows), experts);
        LD_LAUNCH((tensor_kernel<Format>), grid, kThreads, stream, product, rows);
        return;
      }
    }
    const dim3 grid(parts(product.w.n, kTile), parts(most_rows, kTile), experts);
    LD_LAUNCH((float_kernel<Format>), grid, kThreads, stream, product, rows);
  });
}

}  // namespace

void multiply(cudaStream_t stream, const Product& product, int rows, Cores cores) {
  launch(stream, product, {rows, nullptr, 0, nullptr, nullptr}, rows, 1, cores);
}

void multiply_experts(cudaStream_t stream, const ExpertProduct& product, int most_rows, Cores cores) {
  launch(stream, product.common, {0, product.data, product.step, product.begin, product.pick}, most_rows,
         product.experts, cores);
}

}  // namespace ld::cuda
