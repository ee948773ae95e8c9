// Matrix products, by the form of their rows, and those in float32 on the ordinary cores, with weights as they lie in the
// file: each tile of weights is decoded to shared memory once and used for all rows of the block. No split along k: a
// row's sum does not depend on how many rows there are. Not here: tensor cores (int8.cu, fold.cu, tensor.cu).
#include "cuda/product.h"

namespace ld::cuda {
namespace {

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

void launch(cudaStream_t stream, const Product& product, const Rows& rows, int most_rows, int experts) {
  if (product.w.type == TensorType::i8) return multiply_folded(stream, product, rows, most_rows, experts);
  if (product.form == Form::int8) return multiply_int8(stream, product, rows, most_rows, experts);
  if (product.form != Form::float32) return multiply_split(stream, product, rows, most_rows, experts);
  with_format(product.w.type, [&]<class Format>() {
    const dim3 grid(parts(product.w.n, kTile), parts(most_rows, kTile), experts);
    LD_LAUNCH((float_kernel<Format>), grid, kThreads, stream, product, rows);
  });
}

}  // namespace

void multiply(cudaStream_t stream, const Product& product, int rows) {
  launch(stream, product, {rows, nullptr, 0, nullptr, nullptr}, rows, 1);
}

void multiply_experts(cudaStream_t stream, const ExpertProduct& product, int most_rows) {
  launch(stream, product.common, {0, product.data, product.step, product.begin, product.pick}, most_rows,
         product.experts);
}

}  // namespace ld::cuda
