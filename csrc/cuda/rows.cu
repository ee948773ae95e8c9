// Rows by themselves: looking them up, and what a linear layer reads of them (norms, activations, gates).
#include "cuda/decode.h"
#include "cuda/kernels.h"

namespace ld::cuda {
namespace {

constexpr int kThreads = 256;

template <class Format>
__global__ void embed_kernel(Matrix table, const int32_t* ids, bool add, float scale, float* out) {
  const int row = static_cast<int>(blockIdx.x);
  const uint8_t* from = table.data + static_cast<size_t>(ids ? ids[row] : 0) * table.row_bytes;
  float* to = out + static_cast<size_t>(row) * table.k;
  for (int k = threadIdx.x * 8; k < table.k; k += kThreads * 8) {
    float values[8];
    decode_eight<Format>(from, k, table.k, values);
    for (int j = 0; j < 8 && k + j < table.k; ++j) {
      const float value = values[j] * scale;
      to[k + j] = add ? to[k + j] + value : value;
    }
  }
}

__device__ float activate(Activation kind, float x) {
  switch (kind) {
    case Activation::silu:
      return x / (1 + expf(-x));
    case Activation::gelu_tanh:  // x (1 + tanh(a)) / 2 = x / (1 + exp(-2 a)), a = sqrt(2 / pi) (x + 0.044715 x^3)
      return x / (1 + expf(-1.5957691216f * (x + 0.044715f * x * x * x)));
    case Activation::gelu_erf:
      return 0.5f * x * erfcf(-0.70710678f * x);
    case Activation::relu:
      return fmaxf(x, 0);
    case Activation::tanh:
      return tanhf(x);
    default:
      return x;
  }
}

// One block per row. Values are read before any is written, so y may be x.
__global__ void produce_kernel(LinearInput input, bool add, float* y, ptrdiff_t y_stride) {
  const int row = static_cast<int>(blockIdx.x), n = input.width;
  const ptrdiff_t offset = static_cast<ptrdiff_t>(input.pick ? input.pick[row] : row) * input.stride;
  const float* x = input.x + offset;
  const float* up = input.up ? input.up + offset : nullptr;
  const auto value = [&](int i) {
    const float v = activate(input.activation, x[i]);
    return up ? v * up[i] : v;
  };
  float mean = 0, factor = 1;
  if (input.norm.kind == NormKind::layer) {
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += kThreads) sum += value(i);
    mean = static_cast<float>(block_sum<kThreads>(sum) / n);
  }
  if (input.norm.kind != NormKind::none) {
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const float v = value(i) - mean;
      sum += static_cast<double>(v) * v;
    }
    factor = static_cast<float>(1.0 / sqrt(block_sum<kThreads>(sum) / n + input.norm.eps));
  }
  float* to = y + row * y_stride;
  for (int i = threadIdx.x; i < n; i += kThreads) {
    float v = value(i);
    if (input.norm.kind != NormKind::none) {
      v = (v - mean) * factor * input.norm.weight[i] + (input.norm.bias ? input.norm.bias[i] : 0);
    }
    to[i] = add ? to[i] + v : v;
  }
}

// One thread per column.
__global__ void mean_kernel(const float* x, int width, int rows, float* y) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= width) return;
  double sum = 0;
  for (int r = 0; r < rows; ++r) sum += x[static_cast<size_t>(r) * width + i];
  y[i] = static_cast<float>(sum / rows);
}

__global__ void scale_kernel(float* x, size_t count, float factor) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) x[i] *= factor;
}

__global__ void cap_kernel(float* x, size_t count, float bound) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) x[i] = tanhf(x[i] / bound) * bound + x[i] * 0.0f;
}

dim3 blocks_of(size_t count) { return dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)); }

}  // namespace

void embed(cudaStream_t stream, const Matrix& table, const int32_t* ids, int rows, bool add, float scale, float* out) {
  with_format(table.type, [&]<class Format>() {
    LD_LAUNCH(embed_kernel<Format>, dim3(rows), kThreads, stream, table, ids, add, scale, out);
  });
}

void produce(cudaStream_t stream, const LinearInput& input, int rows, float* made) {
  LD_LAUNCH(produce_kernel, dim3(rows), kThreads, stream, input, false, made, input.width);
}

void apply(cudaStream_t stream, const LinearInput& input, int rows, bool add, float* y) {
  LD_LAUNCH(produce_kernel, dim3(rows), kThreads, stream, input, add, y, input.stride);
}

void mean(cudaStream_t stream, const float* x, int width, int rows, float* y) {
  LD_LAUNCH(mean_kernel, dim3((width + kThreads - 1) / kThreads), kThreads, stream, x, width, rows, y);
}

void scale(cudaStream_t stream, float* x, size_t count, float factor) {
  LD_LAUNCH(scale_kernel, blocks_of(count), kThreads, stream, x, count, factor);
}

void cap(cudaStream_t stream, float* x, size_t count, float bound) {
  LD_LAUNCH(cap_kernel, blocks_of(count), kThreads, stream, x, count, bound);
}

}  // namespace ld::cuda
