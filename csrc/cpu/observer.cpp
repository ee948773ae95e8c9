#include "cpu/observer.h"

#include <algorithm>

#include "cpu/vector.h"

namespace ld {
namespace {

constexpr int kRows = 32;     // produced at a time
constexpr int kColumns = 64;  // of one task

}  // namespace

void Observer::observe(const Observed* sums, int max_k) {
  produced_ = std::vector<float>(sums != nullptr ? static_cast<size_t>(kRows) * max_k : 0);
  sums_ = sums;
}

void Observer::add(const LinearInput& input, int first, int count, std::span<const Weight* const> weights) {
  const int width = input.width, tasks = (width + kColumns - 1) / kColumns;
  for (int begin = first; begin < first + count; begin += kRows) {
    const int rows = std::min(kRows, first + count - begin);
    pool_->parallel(
        rows, [&](int r, int) { row_->vector->produce(input, begin + r, &produced_[static_cast<size_t>(r) * width]); });
    for (const Weight* weight : weights) {
      const auto found = sums_->find(weight);
      if (found == sums_->end()) continue;
      double* squares = found->second.squares;
      pool_->parallel(tasks, [&](int task, int) {
        const int end = std::min((task + 1) * kColumns, width);
        for (int r = 0; r < rows; ++r) {
          const float* x = &produced_[static_cast<size_t>(r) * width];
          for (int c = task * kColumns; c < end; ++c) squares[c] += static_cast<double>(x[c]) * x[c];
        }
      });
      *found->second.rows += rows;
    }
  }
}

}  // namespace ld
