#include "cpu/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "router.h"

namespace ld {
namespace {

constexpr int kTaskPanelsOfExpert = 4;
constexpr int kSumRows = 8;  // rows of a task that sums up

constexpr ptrdiff_t whole_panels(int n) { return (static_cast<ptrdiff_t>(n) + kMaxPanel - 1) / kMaxPanel * kMaxPanel; }

}  // namespace

void route(const RouterRule& rule, int count, const float* logits, const float* bias, const float* gain, float* scores,
           int32_t* chosen, float* weights) {
  if (rule.kind == RouterKind::softmax) {
    const float max = *std::max_element(logits, logits + count);
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += scores[i] = std::exp(logits[i] - max);
    for (int i = 0; i < count; ++i) scores[i] = static_cast<float>(scores[i] / sum);
  } else {
    for (int i = 0; i < count; ++i) scores[i] = 1 / (1 + std::exp(-logits[i]));
  }
  choose_experts(rule, count, scores, bias, gain, scores + count, chosen, weights);
}

int pair_rows(const ContextShape& shape) {
  const int64_t pairs = static_cast<int64_t>(shape.rows) * std::max(1, shape.experts_used);
  return static_cast<int>(std::min<int64_t>(pairs, std::max(shape.rows, kSlabRows)));
}

ExpertBuffers::ExpertBuffers(Arena* arena, const ContextShape& shape, int threads)
    : count_(shape.experts), used_(shape.experts_used) {
  if (count_ == 0) return;
  slab_ = std::min(pair_rows(shape), kSlabRows);
  hidden_width_ = 2 * whole_panels(shape.expert_dim);
  width_ = whole_panels(shape.width[static_cast<int>(Buffer::x)]);
  logits_ = arena->take<float>(shape.rows, count_);
  scores_ = arena->take<float>(threads, 2, count_);
  chosen_ = arena->take<int32_t>(shape.rows, used_);
  weights_ = arena->take<float>(shape.rows, used_);
  pair_of_ = arena->take<int32_t>(shape.rows, used_);
  row_of_ = arena->take<int32_t>(shape.rows, used_);
  begins_ = arena->take<int32_t>(count_ + 1);
  hidden_ = arena->take<float>(slab_, hidden_width_);
  out_ = arena->take<float>(slab_, width_);
}

// Every row's experts and weights from the logits, then the pairs sorted by expert.
void ExpertBuffers::choose(Pool& pool, const PackedExperts& experts, int rows) {
  pool.parallel((rows + kSumRows - 1) / kSumRows, [&](int task, int thread) {
    for (int r = task * kSumRows; r < std::min((task + 1) * kSumRows, rows); ++r) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(r) * used_;
      route(experts.rule, count_, logits_ + static_cast<ptrdiff_t>(r) * count_, experts.bias, experts.gain,
            scores_ + static_cast<ptrdiff_t>(thread) * 2 * count_, chosen_ + at, weights_ + at);
    }
  });
  const int pairs = rows * used_;
  std::memset(begins_, 0, sizeof(int32_t) * (count_ + 1));
  for (int p = 0; p < pairs; ++p) ++begins_[chosen_[p] + 1];
  for (int e = 0; e < count_; ++e) begins_[e + 1] += begins_[e];
  for (int p = 0; p < pairs; ++p) {
    pair_of_[p] = begins_[chosen_[p]]++;
    row_of_[pair_of_[p]] = p / used_;
  }
  for (int e = count_; e > 0; --e) begins_[e] = begins_[e - 1];  // each was moved to its end
  begins_[0] = 0;
}

void ExpertBuffers::multiply(Pool& pool, const LinearScratch& linear, const PackedExperts& experts,
                             std::initializer_list<const Weight* const*> matrices, int first, int last, float* out,
                             ptrdiff_t stride, ptrdiff_t matrix_stride) {
  const int panels = experts.matrix((*matrices.begin())[0]).panels();
  const int groups = (panels + kTaskPanelsOfExpert - 1) / kTaskPanelsOfExpert;
  const int per_expert = static_cast<int>(matrices.size()) * groups;
  const int32_t* expert0 = std::upper_bound(begins_, begins_ + count_, first) - 1;
  const int low = static_cast<int>(expert0 - begins_);
  const int high = static_cast<int>(std::lower_bound(begins_, begins_ + count_, last) - begins_);
  pool.parallel((high - low) * per_expert, [&](int task, int thread) {
    const int e = low + task / per_expert, which = task % per_expert / groups;
    const int row0 = std::max(begins_[e], first) - first, row1 = std::min(begins_[e + 1], last) - first;
    if (row0 >= row1) return;
    const PackedMatrix& matrix = experts.matrix(matrices.begin()[which][e]);
    const int panel0 = task % groups * kTaskPanelsOfExpert;
    const int panel1 = std::min(panel0 + kTaskPanelsOfExpert, matrix.panels());
    float* y = out + which * matrix_stride + static_cast<ptrdiff_t>(panel0) * matrix.kernels().panel;
    for (int r = row0; r < row1; r += kTaskRows) {
      multiply_panels(matrix, linear, thread, panel0, panel1, r, std::min(r + kTaskRows, row1), y + r * stride, stride);
    }
  });
}

void ExpertBuffers::observe(Observer* observer, std::initializer_list<const Weight* const*> matrices,
                            const LinearInput& input, int row0, int first, int last) const {
  if (!observer->active()) return;
  for (int e = 0; e < count_; ++e) {
    const int begin = std::max(begins_[e], first), end = std::min(begins_[e + 1], last);
    for (const Weight* const* matrix : matrices)
      if (begin < end) observer->add(input, row0 + begin - first, end - begin, {&matrix[e], 1});
  }
}

void ExpertBuffers::run(const KernelRow& row, Pool& pool, LinearScratch* linear, const LinearInput& routed,
                        const LinearInput& input, int rows, const PackedExperts& experts, Observer* observer,
                        float* y) {
  const PackedOutput router{experts.router, nullptr, logits_, count_, false};
  ld::linear(row, pool, linear, routed, rows, &router, 1);
  choose(pool, experts, rows);

  const int width = input.width;
  std::memset(y, 0, sizeof(float) * rows * width);
  LinearInput gathered = input;
  gathered.pick = row_of_;
  const PackedMatrix &gate = experts.matrix(experts.gate[0]), &up = experts.matrix(experts.up[0]);
  const PackedMatrix& down = experts.matrix(experts.down[0]);
  InputForms in, middle;
  in.add(gate.traits());
  in.add(up.traits());
  middle.add(down.traits());
  for (int first = 0; first < rows * used_; first += slab_) {
    const int last = std::min(first + slab_, rows * used_);
    prepare(row, pool, linear, gathered, first, last - first, in);
    observe(observer, {experts.gate, experts.up}, gathered, first, first, last);
    multiply(pool, *linear, experts, {experts.gate, experts.up}, first, last, hidden_, hidden_width_,
             hidden_width_ / 2);
    const LinearInput product{hidden_,
                              static_cast<int>(hidden_width_),
                              gate.n(),
                              nullptr,
                              Norm{},
                              experts.activation,
                              hidden_ + hidden_width_ / 2};
    prepare(row, pool, linear, product, 0, last - first, middle);
    observe(observer, {experts.down}, product, 0, first, last);
    multiply(pool, *linear, experts, {experts.down}, first, last, out_, width_, 0);

    pool.parallel((rows + kSumRows - 1) / kSumRows, [&](int task, int) {
      for (int r = task * kSumRows; r < std::min((task + 1) * kSumRows, rows); ++r) {
        for (int n = 0; n < used_; ++n) {
          const int pair = pair_of_[r * used_ + n];
          if (pair < first || pair >= last) continue;
          const float weight = weights_[r * used_ + n];
          const float* from = out_ + (pair - first) * width_;
          float* to = y + static_cast<ptrdiff_t>(r) * width;
          for (int i = 0; i < width; ++i) to[i] += weight * from[i];
        }
      }
    });
  }
}

}  // namespace ld
