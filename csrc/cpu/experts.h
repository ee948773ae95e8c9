// Mixtures of experts: the router's choice per row, then products grouped by expert. Rows are gathered expert by expert,
// prepared once per pair of row and expert, and multiplied with the panels of that expert alone, so an expert computes
// only the rows routed to it. Pairs are worked off in slabs of kSlabRows; a row's experts are summed in ascending order,
// so its result depends neither on the other rows nor on slabs and threads. Not here: the arithmetic (gemm.h).
#pragma once

#include "cpu/arena.h"
#include "cpu/gemm.h"
#include "cpu/observer.h"
#include "cpu/pool.h"

namespace ld {

// One row's experts by RouterRule, ascending, and their weights; bias and gain [count] or null; scores is scratch of
// 2 * count floats.
void route(const RouterRule& rule, int count, const float* logits, const float* bias, const float* gain, float* scores,
           int32_t* chosen, float* weights);

// An Experts of ops.h with the matrices of this device.
struct PackedExperts {
  RouterRule rule;
  int count;
  const PackedMatrix* router;
  const float *bias, *gain;
  const Weight* const* gate;
  const Weight* const* up;
  const Weight* const* down;
  Activation activation;
  const PackedMatrix& (*matrix)(const Weight*);
};

class ExpertBuffers {
 public:
  // Nothing is taken where shape.experts is 0.
  ExpertBuffers(Arena* arena, const ContextShape& shape, int threads);

  // See Ops::experts; the router reads `routed`. `linear` holds at least pair_rows(shape) prepared rows; `observer` is told
  // what experts read.
  void run(const KernelRow& row, Pool& pool, LinearScratch* linear, const LinearInput& routed, const LinearInput& input,
           int rows, const PackedExperts& experts, Observer* observer, float* y);

 private:
  void choose(Pool& pool, const PackedExperts& experts, int rows);
  // out[pair] = pairs [first, last) of the last prepare() times one matrix of their expert each.
  void multiply(Pool& pool, const LinearScratch& linear, const PackedExperts& experts,
                std::initializer_list<const Weight* const*> matrices, int first, int last, float* out, ptrdiff_t stride,
                ptrdiff_t matrix_stride);

  // Pairs [first, last) of an input whose row `row0` is the first of them, expert by expert.
  void observe(Observer* observer, std::initializer_list<const Weight* const*> matrices, const LinearInput& input,
               int row0, int first, int last) const;

  int count_, used_;
  int slab_;                        // pairs at a time
  ptrdiff_t hidden_width_, width_;  // of a row in hidden_ and out_, whole panels
  float* logits_;                   // [rows, experts]
  float* scores_;                   // [threads, 2 * experts]
  int32_t* chosen_;                 // [rows, used] experts of a row, ascending
  float* weights_;                  // [rows, used]
  int32_t* pair_of_;                // [rows, used] place among the pairs sorted by expert
  int32_t* row_of_;                 // [rows * used] row of a pair
  int32_t* begins_;                 // [experts + 1] first pair of an expert
  float* hidden_;                   // [slab, gate | up]
  float* out_;                      // [slab, width]
};

// How many rows of input a context with experts prepares at a time.
int pair_rows(const ContextShape& shape);

}  // namespace ld
