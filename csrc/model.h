// A model: its configuration and every weight in the device's own layout. Immutable after construction, so any number
// of sessions in any threads may read it. Not here: the forward pass (transformer.cpp), any per-request state.
#pragma once

#include <memory>
#include <vector>

#include "arch.h"
#include "gguf.h"
#include "ops.h"

namespace ld {

struct Linear {
  const Weight* weight = nullptr;  // [n, k]
  const float* bias = nullptr;     // [n] or null
  int n = 0;
};

struct Layer {
  Norm attention_norm;
  std::vector<Linear> qkv;  // q, k, v, or one fused matrix; their outputs lie side by side
  Linear attention_output;
  Norm ffn_norm;
  Linear gate;  // without weight where the FFN is plain
  Linear up, down;
};

class Model {
 public:
  // `file` must outlive the model: embeddings are looked up in its bytes.
  Model(const Gguf& file, const Ops& ops, const DeviceOptions& options);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  const Ops& ops() const { return ops_; }
  Device* device() const { return device_; }
  const Weight* token_embedding() const { return token_embedding_; }
  const Weight* position_embedding() const { return position_embedding_; }  // null without learned positions
  const std::vector<Layer>& layers() const { return layers_; }
  const Norm& output_norm() const { return output_norm_; }
  const Linear& head() const { return head_; }
  const RopeParams& rope() const { return rope_; }
  uint64_t parameters() const { return parameters_; }
  uint64_t weight_bytes() const;

 private:
  class Loader;
  void release();

  const Ops& ops_;
  ModelConfig config_;
  Device* device_;
  std::vector<Weight*> weights_;  // owned
  std::vector<float*> vectors_;   // owned
  uint64_t vector_bytes_ = 0;
  uint64_t parameters_ = 0;
  const Weight* token_embedding_ = nullptr;
  const Weight* position_embedding_ = nullptr;
  std::vector<Layer> layers_;
  Norm output_norm_{};
  Linear head_;
  RopeParams rope_{};
};

}  // namespace ld
