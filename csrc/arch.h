// From a file's metadata to ModelConfig: the axes along which architectures differ. One table row per architecture in
// arch.cpp; what a tensor's presence can tell (biases, fused projections, a tied head) is left to loader.cpp.
#pragma once

#include <string>
#include <vector>

#include "gguf.h"
#include "ops.h"
#include "rope.h"

namespace ld {

// Where a layer normalises: what a sublayer reads, the residual stream after its sum, or what a sublayer reads and gives.
enum class NormOrder { pre, post, sandwich };

// From the last hidden row to logits: a matrix, or dense + activation + norm + matrix (masked language models).
enum class HeadKind { linear, mlm };

struct MoeConfig {
  int experts;       // 0 = every layer is dense
  int expert_dim;    // width of an expert
  int dense_layers;  // leading layers without experts
  int shared_dim;    // width of the expert that every row passes; 0 = none
  bool beside;       // the dense layer runs too; both read and give through norms of their own, and so does the router
  RouterRule rule;
};

struct ModelConfig {
  std::string arch;
  int vocab, dim, layers, heads, kv_heads, head_dim, ffn_dim, context_length;
  std::vector<KvShape> kv;  // [layers]; kv_heads and head_dim are those of a layer without a window
  int local_head_dim;       // of a layer with one
  int spare_layers;         // trailing layers of the file that predict further tokens; not run
  NormKind norm;
  bool norm_bias;
  NormOrder norm_order;
  float norm_eps;
  bool embedding_norm, output_norm;
  bool first_norm;  // layer 0 normalises before its attention
  bool learned_positions, token_types;
  float embedding_scale;
  bool canvas_norm;   // rms norm of the embeddings of rows that see what follows them, after what is fed back to them
  bool layer_scales;  // every layer's sum is scaled, by one number for the rows of a prompt, by another for a canvas's
  bool qk_norm;       // rms norm of every query and key head before rotation
  bool value_norm;    // rms norm of every value head, without weights
  bool keys_as_values;    // a layer without a matrix of values takes its keys for them, as they are before their norm
  float attention_scale;  // of the scores; 0 = 1 / sqrt(head_dim)
  RopeConfig rope, local_rope;  // local: of layers with a window
  // A row of a layer with a window sees no position further away than this, and where the window is `behind` none as far
  // before itself, a canvas's row before its canvas; what follows it is left to the attention.
  int window;
  bool window_behind;
  std::vector<bool> windowed;  // [layers]
  Activation activation;
  bool gated;       // activation(gate) * up instead of activation(up)
  bool fused_gate;  // gate and up are one matrix, gate first
  HeadKind head;
  float logit_cap;  // 0 = none
  MoeConfig moe;
  int low_rank = 0;  // most that adapters add to the layers of one input, found by the loader
  int lengths = 0;   // classes of the length head, found by the loader; 0 = the model has none

  int q_dim(int layer) const { return heads * kv[layer].head_dim; }
  int kv_dim(int layer) const { return kv[layer].kv_heads * kv[layer].head_dim; }
  int qkv_dim(int layer) const { return q_dim(layer) + 2 * kv_dim(layer); }
  bool has_experts(int layer) const { return moe.experts > 0 && layer >= moe.dense_layers; }
  bool has_dense(int layer) const { return moe.beside || !has_experts(layer); }
};

// Throws Error(LD_FILE) where the architecture is unknown, a key is missing, or a value is out of range.
ModelConfig read_config(const Gguf& file);

}  // namespace ld
