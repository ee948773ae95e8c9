// What the kernels of attention share: where a state's vectors lie. Private to attention.cu and attention_tensor.cu.
#pragma once

#include "cuda/kernels.h"

namespace ld::cuda {

__device__ inline size_t state_at(const State& state, int slot, int place, int head) {
  const size_t line = static_cast<size_t>(slot) * state.slot_length + place;
  return (line * state.kv_heads + head) * state.head_dim;
}

// attention.cu, any shape.
void attend_in_float32(cudaStream_t stream, const Attend& attend);

}  // namespace ld::cuda
