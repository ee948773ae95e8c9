// Statistics of what linear layers read: for weights that are observed, the sum of squares of every input column, in
// float64. Rows are produced once more for this (VectorKernels::produce), a few at a time, and added in their order,
// columns shared out to the threads: the sums depend neither on threads nor on how rows are divided over calls.
// Nothing is done, and no memory held, while nothing is observed. Not here: where sums are kept (session.h).
#pragma once

#include <span>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "ops.h"

namespace ld {

class Observer {
 public:
  Observer(const KernelRow* row, Pool* pool) : row_(row), pool_(pool) {}

  // See Ops::observe; no input is wider than max_k.
  void observe(const Observed* sums, int max_k);
  bool active() const { return sums_ != nullptr; }

  // Rows [first, first + count) of an input that all these weights read.
  void add(const LinearInput& input, int first, int count, std::span<const Weight* const> weights);

 private:
  const KernelRow* row_;
  Pool* pool_;
  const Observed* sums_ = nullptr;
  std::vector<float> produced_;  // [kRows, max_k]
};

}  // namespace ld
