// THE forward pass, written once over Ops: rows of token ids in, hidden rows in Buffer::x out. Everything that is
// called a cache is a choice of rows; everything that is called an attention kind is the interval of each row.
//
// Letters: rows = positions computed in this call, over all canvases; dim, heads, kv_heads, head_dim as in ModelConfig.
// Architectures are axes of ModelConfig and optional parts of Layer: no architecture is known by name. Not here: which
// rows and intervals (session.cpp), the last matrix of the head (Ops::propose, Ops::logits).
#pragma once

#include <atomic>
#include <span>

#include "model.h"
#include "ops.h"

namespace ld {

struct Timings {
  uint64_t forwards = 0, rows = 0;
  double linear = 0, attention = 0, head = 0, other = 0;  // seconds
};

ContextShape context_shape(const Model& model, int slots, int slot_length, int rows, int score_rows);
// What a part of the model needs of it.
ContextShape part_shape(ContextShape shape, const Part& part, bool head = true);

// Computes the rows, writing their state into the contexts, one for each part of the model. Returns false when `cancel` was set, which is looked at
// before each layer, and once before a step that a device computes as a whole; the state of the rows is then undefined.
bool forward(const Model& model, std::span<Context* const> contexts, const Rows& rows, const std::atomic<bool>& cancel,
             Timings& timings);

// What the head's last matrix reads for `count` rows, in the last part's context; row r is made from row pick[r] of
// Buffer::x.
LinearInput head_input(const Model& model, Context* context, const int32_t* pick, int count);

// What the last matrix of the length head reads, in the last part's context, one row, after forward() of the rows of one canvas. Changes Buffer::x.
LinearInput length_input(const Model& model, Context* context, const Rows& rows);

}  // namespace ld
