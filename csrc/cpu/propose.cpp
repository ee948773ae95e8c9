#include "cpu/propose.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>

namespace ld {
namespace {

constexpr int kPanelsPerTask = 4;

void finish_logits(const VectorKernels& kernels, const PackedHead& head, float* x) {
  const int n = head.weight->n();
  for (int i = 0; head.bias && i < n; ++i) x[i] += head.bias[i];
  if (head.cap > 0) kernels.cap(x, n, head.cap);
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

Head::Head(Arena* arena, const ContextShape& shape, int threads) : blocks_(logit_blocks(shape.vocab)) {
  // A line more than whole blocks: rows of a chunk do not compete for the same cache sets.
  stride_ = static_cast<ptrdiff_t>(blocks_) * kLogitBlock + kMaxPanel;
  slab_ = std::min(shape.rows, kSlabRows);
  const int fitting = static_cast<int>(kLogitBytes / (stride_ * sizeof(float)));
  chunk_ = std::min(slab_, std::clamp(fitting, 2, kLogitRows));
  logits_ = arena->take<float>(chunk_, stride_);
  e_ = arena->take<float>(threads, blocks_, kLogitBlock);
  block_max_ = arena->take<float>(threads, blocks_);
  block_sum_ = arena->take<float>(threads, blocks_);
  if (shape.width_of(Buffer::feedback) > 0) expectation_ = Expectation(arena, shape, chunk_, threads);
}

template <class Joined, class Consume, class Finish>
int Head::for_each_row(const KernelRow& kernels, Pool& pool, LinearScratch* linear, const LinearInput& input,
                       const PackedHead& head, int rows, const Joined& joined, const Consume& consume,
                       const Finish& finish) {
  std::atomic<int> bad{INT_MAX};
  const PackedMatrix& weight = *head.weight;
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
      finish(slab + first, slab + last);
    }
  }
  const int lowest = bad.load(std::memory_order_relaxed);
  return lowest == INT_MAX ? -1 : lowest;
}

int Head::propose(const KernelRow& kernels, Pool& pool, LinearScratch* linear, const LinearInput& input,
                  const PackedHead& head, const ScoreRow* score, int rows) {
  const int vocab = head.weight->n();
  const auto guided = [&](int row) { return score[row].sampling->guidance != 0; };
  const auto consume = [&](int row, float* x, int thread) {
    if (row > 0 && guided(row - 1)) return true;  // the row before works on both
    const LogitScratch scratch = {e_ + static_cast<ptrdiff_t>(thread) * blocks_ * kLogitBlock,
                                  block_max_ + static_cast<ptrdiff_t>(thread) * blocks_,
                                  block_sum_ + static_cast<ptrdiff_t>(thread) * blocks_};
    const auto given = [&](int r, float* logits) {
      finish_logits(*kernels.vector, head, logits);
      if (score[r].logits) std::copy(logits, logits + vocab, score[r].logits);
      if (score[r].feedback >= 0) {
        expectation_.add(*kernels.vector, score[r], (logits - logits_) / stride_, logits, vocab, scratch);
      }
    };
    given(row, x);
    if (guided(row)) {
      given(row + 1, x + stride_);
      guide(score[row].sampling->guidance, x + stride_, vocab, x);
    }
    return score_row(*kernels.vector, x, vocab, score[row], scratch);
  };
  const auto finish = [&](int first, int last) {
    if (head.table && std::any_of(score + first, score + last, [](const ScoreRow& row) { return row.feedback >= 0; }))
      expectation_.take(*kernels.vector, pool, *head.table, head.table_scale, score + first, last - first,
                        head.feedback);
  };
  return for_each_row(kernels, pool, linear, input, head, rows, guided, consume, finish);
}

int Head::logits(const KernelRow& kernels, Pool& pool, LinearScratch* linear, const LinearInput& input,
                 const PackedHead& head, int rows, float* out) {
  const int vocab = head.weight->n();
  const auto joined = [](int) { return false; };
  const auto consume = [&](int row, float* x, int) {
    finish_logits(*kernels.vector, head, x);
    std::copy(x, x + vocab, out + static_cast<ptrdiff_t>(row) * vocab);
    return all_finite(x, vocab);
  };
  return for_each_row(kernels, pool, linear, input, head, rows, joined, consume, [](int, int) {});
}

}  // namespace ld
