// Mixtures of experts: which rows go to which expert, in an order that depends on nothing but the choices, and the sum of
// what comes back. The rules of the choice are those of router.h.
#include "cuda/kernels.h"
#include "router.h"

namespace ld::cuda {
namespace {

constexpr int kThreads = 256;

// One thread per row.
__global__ void choose_kernel(RouterRule rule, int count, const float* logits, const float* bias, const float* gain,
                              int rows, Routing routing) {
  const int row = static_cast<int>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= rows) return;
  logits += static_cast<size_t>(row) * count;
  float* scores = routing.scores + static_cast<size_t>(row) * 2 * count;
  if (rule.kind == RouterKind::softmax) {
    float largest = logits[0];
    for (int i = 1; i < count; ++i) largest = fmaxf(largest, logits[i]);
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += scores[i] = expf(logits[i] - largest);
    for (int i = 0; i < count; ++i) scores[i] = static_cast<float>(scores[i] / sum);
  } else {
    for (int i = 0; i < count; ++i) scores[i] = 1 / (1 + expf(-logits[i]));
  }
  choose_experts(rule, count, scores, bias, gain, scores + count, routing.chosen + row * rule.used,
                 routing.weights + row * rule.used);
}

// One block: how many pairs each expert has, then where they begin.
__global__ void count_kernel(int count, int pairs, Routing routing) {
  for (int expert = threadIdx.x; expert < count; expert += kThreads) {
    int found = 0;
    for (int i = 0; i < pairs; ++i) found += routing.chosen[i] == expert;
    routing.begin[expert + 1] = found;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    routing.begin[0] = 0;
    for (int expert = 0; expert < count; ++expert) routing.begin[expert + 1] += routing.begin[expert];
  }
}

// One warp per expert: its pairs, rows ascending.
__global__ void list_kernel(int used, int pairs, Routing routing) {
  const int expert = static_cast<int>(blockIdx.x), lane = threadIdx.x;
  const int part = (pairs + kWarp - 1) / kWarp, first = lane * part, last = min(first + part, pairs);
  int mine = 0;
  for (int i = first; i < last; ++i) mine += routing.chosen[i] == expert;
  int at = routing.begin[expert];
  for (int other = 0; other < kWarp; ++other) {
    const int theirs = __shfl_sync(kWholeWarp, mine, other);
    if (other < lane) at += theirs;
  }
  for (int i = first; i < last; ++i) {
    if (routing.chosen[i] != expert) continue;
    routing.row_of[at] = i / used;
    routing.pair_of[i] = at++;
  }
}

__global__ void gather_kernel(Routing routing, int used, const float* out, int width, ptrdiff_t stride, float* y) {
  const int row = static_cast<int>(blockIdx.x);
  for (int i = threadIdx.x; i < width; i += kThreads) {
    float sum = 0;
    for (int n = 0; n < used; ++n) {
      sum += routing.weights[row * used + n] * out[static_cast<size_t>(routing.pair_of[row * used + n]) * width + i];
    }
    y[row * stride + i] = sum;
  }
}

}  // namespace

void route(cudaStream_t stream, const RouterRule& rule, int count, const float* logits, const float* bias,
           const float* gain, int rows, const Routing& routing) {
  const unsigned blocks = static_cast<unsigned>((rows + kThreads - 1) / kThreads);
  LD_LAUNCH(choose_kernel, dim3(blocks), kThreads, stream, rule, count, logits, bias, gain, rows, routing);
  LD_LAUNCH(count_kernel, dim3(1), kThreads, stream, count, rows * rule.used, routing);
  LD_LAUNCH(list_kernel, dim3(count), kWarp, stream, rule.used, rows * rule.used, routing);
}

void gather_experts(cudaStream_t stream, const Routing& routing, int used, const float* out, int width, int rows,
                    ptrdiff_t stride, float* y) {
  LD_LAUNCH(gather_kernel, dim3(rows), kThreads, stream, routing, used, out, width, stride, y);
}

}  // namespace ld::cuda
