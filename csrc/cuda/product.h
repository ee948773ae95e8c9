// What the kernels of matrix products share: which rows and weights a block works on, and where a sum goes. Private to
// gemm.cu, int8.cu, fold.cu and tensor.cu.
#pragma once

#include "cuda/decode.h"
#include "cuda/kernels.h"

namespace ld::cuda {

// What a block works on: rows [first, last) of y and the weights, of an expert or of the one matrix there is.
struct Share {
  const uint8_t* data;
  int first, last;
};

struct Rows {
  int count;                   // where there is one matrix
  const uint8_t* const* data;  // [experts], or null: `step` bytes apart from p.w.data on
  size_t step;
  const int32_t *begin, *pick;  // null where there is one matrix
  __device__ Share share(const Product& p) const {
    if (begin == nullptr) return {p.w.data, 0, count};
    return {data ? data[blockIdx.z] : p.w.data + blockIdx.z * step, begin[blockIdx.z], begin[blockIdx.z + 1]};
  }
  __device__ ptrdiff_t input(int row) const { return pick ? pick[row] : row; }
};

__device__ inline void put(const Product& p, int row, int column, float sum) {
  float* y = p.y + row * p.y_stride + column;
  if (p.bias) sum += p.bias[column];
  *y = p.add ? *y + sum : sum;
}

inline unsigned parts(int count, int size) { return static_cast<unsigned>((count + size - 1) / size); }

// `most_rows` bounds the rows of a share. int8.cu, for types of integers; fold.cu, for weights that fold() made:
void multiply_int8(cudaStream_t stream, const Product& product, const Rows& rows, int most_rows, int experts);
void multiply_folded(cudaStream_t stream, const Product& product, const Rows& rows, int most_rows, int experts);
// tensor.cu, for float16 in halves, for bfloat16 in bfloats or bfloat16:
void multiply_split(cudaStream_t stream, const Product& product, const Rows& rows, int most_rows, int experts);

}  // namespace ld::cuda
