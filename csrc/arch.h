// From a file's metadata to ModelConfig: the axes along which architectures differ. One table row per architecture in
// arch.cpp; what a tensor's presence can tell (biases, fused projections, a tied head) is left to loader.cpp.
#pragma once

#include <string>
#include <vector>

#include "gguf.h"
#include "ops.h"
#include "rope.h"

namespace ld {

// Where a layer normalises: what a sublayer reads, or the residual stream after its sum.
enum class NormOrder { pre, post };

// From the last hidden row to logits: a matrix, or dense + activation + norm + matrix (masked language models).
enum class HeadKind { linear, mlm };

struct MoeConfig {
  int experts;       // 0 = every layer is dense
  int expert_dim;    // width of an expert
  int dense_layers;  // leading layers without experts
  int shared_dim;    // width of the expert that every row passes; 0 = none
  RouterRule rule;
};

struct ModelConfig {
  std::string arch;
  int vocab, dim, layers, heads, kv_heads, head_dim, ffn_dim, context_length;
  int spare_layers;  // trailing layers of the file that predict further tokens; not run
  NormKind norm;
  bool norm_bias;
  NormOrder norm_order;
  float norm_eps;
  bool embedding_norm, output_norm;
  bool first_norm;  // layer 0 normalises before its attention
  bool learned_positions, token_types;
  bool qk_norm;  // rms norm of every query and key head before rotation
  RopeConfig rope;
  double local_theta;          // base of layers with a window
  int window;                  // of such a layer: a row sees no position further away than this
  std::vector<bool> windowed;  // [layers]
  Activation activation;
  bool gated;       // activation(gate) * up instead of activation(up)
  bool fused_gate;  // gate and up are one matrix, gate first
  HeadKind head;
  MoeConfig moe;
  int low_rank = 0;  // most that adapters add to the layers of one input, found by the loader
  int lengths = 0;   // classes of the length head, found by the loader; 0 = the model has none

  int qkv_dim() const { return (heads + 2 * kv_heads) * head_dim; }
  bool has_experts(int layer) const { return moe.experts > 0 && layer >= moe.dense_layers; }
};

// Throws Error(LD_FILE) where the architecture is unknown, a key is missing, or a value is out of range.
ModelConfig read_config(const Gguf& file);

}  // namespace ld
