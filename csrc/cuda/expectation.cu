// Expected embeddings of scored rows, by the rules of cpu/expectation.h: first the probabilities of a row's tokens, then
// their sum over the rows of the embedding table, tokens ascending.
#include "cuda/decode.h"
#include "cuda/kernels.h"

namespace ld::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumnThreads = 64;  // of a block, eight columns each
constexpr int kTogether = 8;        // rows that share what is decoded

// p[r] = softmax(logits[r] * factor[r]); one block per row.
__global__ void probabilities_kernel(const float* logits, float* p, int vocab, Expectation expectation) {
  __shared__ float tops[kThreads];
  const int row = static_cast<int>(blockIdx.x);
  if (expectation.row[row] < 0) return;
  logits += static_cast<size_t>(row) * vocab;
  p += static_cast<size_t>(row) * vocab;
  float top = -INFINITY;
  for (int v = threadIdx.x; v < vocab; v += kThreads) top = fmaxf(top, logits[v]);
  tops[threadIdx.x] = top;
  __syncthreads();
  for (int i = 0; i < kThreads; ++i) top = fmaxf(top, tops[i]);
  double sum = 0;
  for (int v = threadIdx.x; v < vocab; v += kThreads) {
    p[v] = expf(fmaxf(-1e4f, (logits[v] - top) * expectation.factor[row]));
    sum += p[v];
  }
  const float share = static_cast<float>(1 / block_sum<kThreads>(sum));
  for (int v = threadIdx.x; v < vocab; v += kThreads) p[v] *= share;
}

// Eight columns of kTogether rows per thread.
template <class Format>
__global__ void expect_kernel(const float* p, Matrix table, float scale, Expectation expectation, int rows,
                              float* feedback) {
  const int first = static_cast<int>(blockIdx.x) * kTogether, count = min(kTogether, rows - first);
  const int k = (static_cast<int>(blockIdx.y) * kColumnThreads + static_cast<int>(threadIdx.x)) * 8;
  if (k >= table.k) return;
  float sum[kTogether][8] = {};
  for (int token = 0; token < table.n; ++token) {
    float values[8];
    decode_eight<Format>(table.data + static_cast<size_t>(token) * table.row_bytes, k, table.k, values);
    for (int r = 0; r < count; ++r) {
      const float weight = p[static_cast<size_t>(first + r) * table.n + token];
      for (int j = 0; j < 8; ++j) sum[r][j] += weight * values[j];
    }
  }
  for (int r = 0; r < count; ++r) {
    const int32_t row = expectation.row[first + r];
    if (row < 0) continue;
    float* to = feedback + static_cast<size_t>(row) * table.k;
    for (int j = 0; j < 8 && k + j < table.k; ++j) to[k + j] = sum[r][j] * scale;
  }
}

}  // namespace

void expect(cudaStream_t stream, const float* logits, float* p, const Matrix& table, float scale,
            const Expectation& expectation, int rows, float* feedback) {
  LD_LAUNCH(probabilities_kernel, dim3(rows), kThreads, stream, logits, p, table.n, expectation);
  const dim3 blocks((rows + kTogether - 1) / kTogether, (table.k + 8 * kColumnThreads - 1) / (8 * kColumnThreads));
  with_format(table.type, [&]<class Format>() {
    LD_LAUNCH(expect_kernel<Format>, blocks, kColumnThreads, stream, p, table, scale, expectation, rows, feedback);
  });
}

}  // namespace ld::cuda
