// From rows of logits to tokens and their scores, by the rules of cpu/sampling.h; one block per row. Sums are taken in
// double in a fixed order, so a row's result is its own. Exponentials are the device's, within 2 ulp of the processor's.
#include "cuda/kernels.h"

namespace ld::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostTop = 64;

__device__ inline bool finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

struct Candidate {
  float logit;
  int32_t token;  // -1 = none

  __device__ bool before(const Candidate& other) const {  // likelier; of equals the lower token
    return other.token < 0 || (token >= 0 && (logit > other.logit || (logit == other.logit && token < other.token)));
  }
};

// The first of the block's candidates, in every thread.
__device__ Candidate block_first(Candidate mine) {
  __shared__ Candidate found[kThreads];
  __syncthreads();
  found[threadIdx.x] = mine;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half && found[threadIdx.x + half].before(found[threadIdx.x])) {
      found[threadIdx.x] = found[threadIdx.x + half];
    }
  }
  __syncthreads();
  return found[0];
}

// Sums of all threads before this one, in double or whole numbers.
template <class T>
__device__ T sum_before(T mine) {
  __shared__ T sums[kThreads];
  __syncthreads();
  sums[threadIdx.x] = mine;
  __syncthreads();
  T before = 0;
  for (int i = 0; i < static_cast<int>(threadIdx.x); ++i) before += sums[i];
  return before;
}

// One row: its logits x and exponentials e, `vocab` each.
struct Scored {
  float *x, *e;
  int vocab;
  float max, scale;
  double sum, weighted;  // of e, of e * log e

  // exp((x - max) * factor)
  __device__ void exponentials(float factor) {
    scale = factor;
    double total = 0, weights = 0;
    for (int v = threadIdx.x; v < vocab; v += kThreads) {
      const float d = exponent(v);
      e[v] = expf(d);
      total += e[v];
      weights += static_cast<double>(e[v]) * d;
    }
    sum = block_sum<kThreads>(total);
    weighted = block_sum<kThreads>(weights);
    __syncthreads();
  }

  __device__ float exponent(int v) const { return fmaxf(-1e4f, (x[v] - max) * scale); }

  // The largest value of which reached(how many e >= it, their sum) holds.
  struct Boundary {
    float value;
    int above;  // tokens > value
    double above_mass;
    int equal;
  };
  template <class Reached>
  __device__ Boundary boundary(Reached reached) const {
    uint32_t low = 1, high = bits_of(1.0f) + 1;  // positive floats ascend with their bits
    int low_count = vocab, high_count = 0;
    double high_mass = 0;
    while (high - low > 1 && low_count - high_count > 1) {
      const uint32_t middle = low + (high - low) / 2;
      const float threshold = float_from_bits(middle);
      int count = 0;
      double mass = 0;
      for (int v = threadIdx.x; v < vocab; v += kThreads) {
        if (e[v] >= threshold) {
          ++count;
          mass += e[v];
        }
      }
      count = block_sum<kThreads>(count);
      mass = block_sum<kThreads>(mass);
      if (reached(count, mass)) {
        low = middle;
        low_count = count;
      } else {
        high = middle;
        high_count = count;
        high_mass = mass;
      }
    }
    return {float_from_bits(low), high_count, high_mass, low_count - high_count};
  }

  // Leaves the top_k likeliest tokens, then the nucleus; what goes becomes 0.
  __device__ void filter(int top_k, float top_p) {
    float value = 0;
    int ties = vocab, equal = vocab;
    double mass = sum;
    if (top_k > 0) {
      const Boundary b = boundary([&](int count, double) { return count >= top_k; });
      value = b.value;
      equal = b.equal;
      ties = top_k - b.above;
      mass = b.above_mass + static_cast<double>(min(ties, equal)) * value;
    }
    if (top_p > 0 && top_p < 1) {
      const double target = top_p * mass;
      const Boundary b = boundary([&](int, double reached) { return reached > target; });
      const double room = fmax(0.0, target - b.above_mass) / b.value;
      const int stay = room >= vocab ? vocab : static_cast<int>(room) + 1;
      if (b.value > value) ties = stay;
      if (b.value == value) ties = min(ties, stay);
      if (b.value >= value) {
        value = b.value;
        equal = b.equal;
      }
    }
    if (ties < equal) keep_first(value, ties);
    cut(value);
  }

  // Of the tokens whose e equals `value` the first `ties` stay.
  __device__ void keep_first(float value, int ties) {
    const int part = (vocab + kThreads - 1) / kThreads, first = threadIdx.x * part, last = min(first + part, vocab);
    int mine = 0;
    for (int v = first; v < last; ++v) mine += e[v] == value;
    int seen = sum_before(mine);
    for (int v = first; v < last; ++v) {
      if (e[v] == value && seen++ >= ties) e[v] = 0;
    }
    __syncthreads();
  }

  __device__ void cut(float value) {
    double total = 0, weights = 0;
    for (int v = threadIdx.x; v < vocab; v += kThreads) {
      if (e[v] < value) e[v] = 0;
      total += e[v];
      if (e[v] > 0) weights += static_cast<double>(e[v]) * exponent(v);
    }
    sum = block_sum<kThreads>(total);
    weighted = block_sum<kThreads>(weights);
    __syncthreads();
  }

  // The first token whose running sum exceeds uniform * sum; the last one takes what rounding leaves.
  __device__ int draw(double uniform) const {
    const int part = (vocab + kThreads - 1) / kThreads, first = threadIdx.x * part, last = min(first + part, vocab);
    double mine = 0;
    for (int v = first; v < last; ++v) mine += e[v];
    const double target = uniform * sum, before = sum_before(mine);
    const bool reached = mine > 0 && before + mine > target;
    // Of the parts that reach the target the first, else the last that can be drawn from.
    const int order = reached ? 2 * kThreads - static_cast<int>(threadIdx.x) : static_cast<int>(threadIdx.x);
    int token = -1;
    if (mine > 0) {
      double running = before;
      for (int v = first; v < last; ++v) {
        if (e[v] == 0) continue;
        token = v;
        running += e[v];
        if (running > target) break;
      }
    }
    return block_first({static_cast<float>(order), token}).token;
  }

  __device__ float probability(int token) const { return static_cast<float>(e[token] / sum); }
  __device__ float entropy() const { return static_cast<float>(fmax(0.0, log(sum) - weighted / sum)); }
};

// Guidance, penalty, bias, then what may not be proposed. False where a logit is not finite.
__device__ bool change(const ScoreTask& task, const float* u, int vocab, float* x) {
  if (u) {
    for (int v = threadIdx.x; v < vocab; v += kThreads) x[v] = u[v] + (task.guidance + 1) * (x[v] - u[v]);
    __syncthreads();
  }
  for (int i = threadIdx.x; i < task.n_repeated; i += kThreads) {
    float& logit = x[task.repeated[i]];
    logit = logit > 0 ? logit / task.penalty : logit * task.penalty;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < task.n_bias; i += kThreads) x[task.bias_token[i]] += task.bias[i];
  __syncthreads();
  int wrong = 0;
  for (int v = threadIdx.x; v < vocab; v += kThreads) wrong += !finite(x[v]);
  if (block_sum<kThreads>(wrong) > 0) return false;
  __syncthreads();
  for (int i = threadIdx.x; i < task.n_forbidden; i += kThreads) x[task.forbidden[i]] = -INFINITY;
  __syncthreads();
  if (task.allowed) {
    for (int v = threadIdx.x; v < vocab; v += kThreads) {
      if (!(task.allowed[v / 32] >> v % 32 & 1)) x[v] = -INFINITY;
    }
    __syncthreads();
  }
  return true;
}

__global__ void __launch_bounds__(kThreads) score_kernel(float* logits, float* scratch, ptrdiff_t stride, int vocab,
                                                         const ScoreTask* tasks, ScoreResults results) {
  __shared__ Candidate top[kMostTop];
  const int row = static_cast<int>(blockIdx.x);
  const ScoreTask task = tasks[row];
  if (task.skip) return;
  Scored s{logits + row * stride, scratch + row * stride, vocab, 0, 1, 0, 0};
  if (!change(task, task.companion < 0 ? nullptr : logits + task.companion * stride, vocab, s.x)) {
    if (threadIdx.x == 0) results.bad[row] = 1;
    return;
  }

  const int wanted = max(2, task.alternatives);
  int found = 0;
  for (Candidate last{INFINITY, -1}; found < wanted; ++found) {
    Candidate best{0, -1};
    for (int v = threadIdx.x; v < vocab; v += kThreads) {
      const Candidate each{s.x[v], v};
      const bool left = last.token < 0 || last.before(each);
      if (left && each.logit > -INFINITY && each.before(best)) best = each;
    }
    last = block_first(best);
    if (last.token < 0) break;
    if (threadIdx.x == 0) top[found] = last;
  }
  __syncthreads();
  s.max = top[0].logit;

  const bool draws = task.temperature > 0;
  const bool filters = task.top_k > 0 || (task.top_p > 0 && task.top_p < 1);
  const bool sampled = draws || task.scores_sampled;
  const float factor = draws ? fminf(1 / task.temperature, 1e30f) : 1;
  int token = task.wanted < 0 ? top[0].token : task.wanted;
  if (sampled) {
    s.exponentials(factor);
    if (filters) s.filter(task.top_k, task.top_p);
    if (draws && task.wanted < 0) token = s.draw(task.uniform);
  }
  if (!task.scores_sampled && (!sampled || filters || factor != 1)) s.exponentials(1);
  __syncthreads();
  if (threadIdx.x == 0) {
    results.bad[row] = 0;
    results.token[row] = token;
    results.probability[row] = s.probability(token);
    const float second = found > 1 ? s.e[top[1].token] : 0;
    results.margin[row] = static_cast<float>((static_cast<double>(s.e[top[0].token]) - second) / s.sum);
    results.entropy[row] = s.entropy();
  }
  for (int i = threadIdx.x; i < task.alternatives; i += kThreads) {
    const ptrdiff_t at = static_cast<ptrdiff_t>(row) * kMostTop + i;
    results.alternative_token[at] = i < found ? top[i].token : -1;
    results.alternative_probability[at] = i < found ? s.probability(top[i].token) : 0;
  }
}

}  // namespace

void score(cudaStream_t stream, float* logits, float* e, ptrdiff_t stride, int vocab, const ScoreTask* tasks, int rows,
           const ScoreResults& results) {
  LD_LAUNCH(score_kernel, dim3(rows), kThreads, stream, logits, e, stride, vocab, tasks, results);
}

}  // namespace ld::cuda
