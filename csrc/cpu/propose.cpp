#include "cpu/propose.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>

namespace ld {
namespace {

constexpr int kPanelsPerTask = 4;

void add_bias(const float* bias, int n, float* x) {
  for (int i = 0; bias && i < n; ++i) x[i] += bias[i];
}

// How many of `count` rows from `first` on can be worked on together without the last one losing its companion.
template <class Joined>
int whole(int first, int count, const Joined& joined) {
  return joined(first + count - 1) ? count - 1 : count;
}

bool all_finite(const float* x, int n) {
  bool finite = true;
  for (int i = 0; i < n; ++i) finite &= std::isfinite(x[i]);
  return finite;
}

}  // namespace

Head::Head(Arena* arena, int vocab, int rows, int threads) : blocks_(logit_blocks(vocab)) {
  // A line more than whole blocks: rows of a chunk do not compete for the same cache sets.
  stride_ = static_cast<ptrdiff_t>(blocks_) * kLogitBlock + kMaxPanel;
  slab_ = std::min(rows, kSlabRows);
  const int fitting = static_cast<int>(kLogitBytes / (stride_ * sizeof(float)));
  chunk_ = std::min(slab_, std::clamp(fitting, 2, kLogitRows));
  logits_ = arena->take<float>(chunk_, stride_);
  e_ = arena->take<float>(threads, blocks_, kLogitBlock);
  block_max_ = arena->take<float>(threads, blocks_);
  block_sum_ = arena->take<float>(threads, blocks_);
}

template <class Joined, class Consume>
int Head::for_each_row(const KernelRow& kernels, Pool& pool, LinearScratch* linear, const LinearInput& input,
                       const PackedMatrix& weight, int rows, const Joined& joined, const Consume& consume) {
  std::atomic<int> bad{INT_MAX};
  InputForms forms;
  forms.add(weight.traits());
  const int panel = weight.kernels().panel;
  for (int slab = 0, slab_rows; slab < rows; slab += slab_rows) {
    slab_rows = whole(slab, std::min(slab_, rows - slab), joined);
    prepare(kernels, pool, linear, input, slab, slab_rows, forms);
    for (int first = 0, last; first < slab_rows; first = last) {
      last = first + whole(slab + first, std::min(chunk_, slab_rows - first), joined);
      const int tasks = (weight.panels() + kPanelsPerTask - 1) / kPanelsPerTask;
      pool.parallel(tasks, [&](int task, int thread) {
        const int panel0 = task * kPanelsPerTask, panel1 = std::min(panel0 + kPanelsPerTask, weight.panels());
        multiply_panels(weight, *linear, thread, panel0, panel1, first, last, logits_ + panel0 * panel, stride_);
      });
      pool.parallel(last - first, [&](int r, int thread) {
        const int row = slab + first + r;
        if (consume(row, logits_ + r * stride_, thread)) return;
        int lowest = bad.load(std::memory_order_relaxed);
        while (row < lowest && !bad.compare_exchange_weak(lowest, row, std::memory_order_relaxed)) {
        }
      });
    }
  }
  const int lowest = bad.load(std::memory_order_relaxed);
  return lowest == INT_MAX ? -1 : lowest;
}

int Head::propose(const KernelRow& kernels, Pool& pool, LinearScratch* linear, const LinearInput& input,
                  const PackedMatrix& weight, const float* bias, const ScoreRow* score, int rows) {
  const auto guided = [&](int row) { return score[row].sampling->guidance != 0; };
  const auto given = [&](int row, float* x) {
    add_bias(bias, weight.n(), x);
    if (score[row].logits) std::copy(x, x + weight.n(), score[row].logits);
  };
  return for_each_row(kernels, pool, linear, input, weight, rows, guided, [&](int row, float* x, int thread) {
    if (row > 0 && guided(row - 1)) return true;  // the row before works on both
    given(row, x);
    if (guided(row)) {
      given(row + 1, x + stride_);
      guide(score[row].sampling->guidance, x + stride_, weight.n(), x);
    }
    const LogitScratch scratch = {e_ + static_cast<ptrdiff_t>(thread) * blocks_ * kLogitBlock,
                                  block_max_ + static_cast<ptrdiff_t>(thread) * blocks_,
                                  block_sum_ + static_cast<ptrdiff_t>(thread) * blocks_};
    return score_row(*kernels.vector, x, weight.n(), score[row], scratch);
  });
}

int Head::logits(const KernelRow& kernels, Pool& pool, LinearScratch* linear, const LinearInput& input,
                 const PackedMatrix& weight, const float* bias, int rows, float* out) {
  const auto joined = [](int) { return false; };
  return for_each_row(kernels, pool, linear, input, weight, rows, joined, [&](int row, float* x, int) {
    add_bias(bias, weight.n(), x);
    std::copy(x, x + weight.n(), out + static_cast<ptrdiff_t>(row) * weight.n());
    return all_finite(x, weight.n());
  });
}

}  // namespace ld
