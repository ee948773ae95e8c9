// From a file's metadata to ModelConfig: the axes along which architectures differ. One table row per architecture in
// arch.cpp; what a tensor's presence can tell (biases, fused projections, a tied head) is left to model.cpp.
#pragma once

#include <string>

#include "gguf.h"
#include "ops.h"

namespace ld {

struct ModelConfig {
  std::string arch;
  int vocab, dim, layers, heads, kv_heads, head_dim, ffn_dim, context_length;
  NormKind norm;
  float norm_eps;
  bool learned_positions;
  Rope rope;
  int rope_dims;
  double rope_theta;
  double rope_factor;  // linear scaling: positions are divided by it
  Activation activation;
  bool gated;  // activation(gate) * up instead of activation(up)

  int qkv_dim() const { return (heads + 2 * kv_heads) * head_dim; }
};

// Throws Error(LD_FILE) where the architecture is unknown, a key is missing, or a value is out of range.
ModelConfig read_config(const Gguf& file);

}  // namespace ld
