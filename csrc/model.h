// A model: its configuration and every weight in the device's own layout. Immutable after construction, so any number
// of sessions in any threads may read it. Not here: names and shapes of tensors (loader.cpp), the forward pass
// (transformer.cpp), any per-request state.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "adapter.h"
#include "arch.h"
#include "gguf.h"
#include "ops.h"

namespace ld {

// What adapters add to a linear layer: b (a x).
struct LowRank {
  int rank = 0;               // 0 = nothing
  const Weight* a = nullptr;  // [rank, k]
  const Weight* b = nullptr;  // [n, rank]
};

struct Linear {
  const Weight* weight = nullptr;  // [n, k]; null where the model has no such layer
  const float* bias = nullptr;     // [n] or null
  int n = 0;
  LowRank change{};
};

// A sublayer reads before(x) and adds inner(what it gives) to x, which `after` then norms in place. Any of the norms may be
// NormKind::none.
struct Join {
  Norm before{}, inner{}, after{};
};

// down(activation(first columns of in(x)) * the rest), or down(activation(in(x))) where nothing gates.
struct FeedForward {
  std::vector<Linear> in;  // gate and up, or both in one matrix, or up; their outputs lie side by side
  Linear down;
  int width = 0;  // of what `down` reads; 0 = the layer has none
  Activation activation = Activation::none;
  bool gated = false;
};

struct Layer {
  Join attention_join;
  AttentionLayer attention{};
  bool windowed = false;
  std::vector<Linear> qkv;  // q, k, v, or one fused matrix; their outputs lie side by side
  Linear attention_output;
  Join ffn_join;                              // of the sum of the parts below; `before` of the dense one
  FeedForward ffn;                            // every row's: the dense layer, or the shared expert
  Norm ffn_inner{};                           // of what it gives
  Experts experts{};                          // count 0 without
  Norm experts_before{}, experts_inner{};     // of what they read and give
  std::vector<const Weight*> expert_weights;  // gates, ups, downs
  float prompt_scale = 1, canvas_scale = 1;   // of x after all this
};

// What a step tells the next one: x of a row += down(activation(gate(norm(e))) * up(norm(e))), with e the embedding that
// was expected there.
struct Feedback {
  Norm norm{};
  FeedForward ffn;  // width 0 without
};

// From the last hidden rows to logits.
struct OutputHead {
  Norm norm{};
  Linear dense;  // masked language models: decoder(dense_norm(activation(dense(x))))
  Norm dense_norm{};
  OutputLayer decoder{};
};

// From the hidden rows of a prompt to logits of how many tokens its answer has: one more layer in which all rows see each
// other, the mean of its rows, classes(tanh(dense(mean))). Class c stands for c + 1 tokens. No row of the table of
// architectures: any model may have been trained with one (arXiv:2308.12219).
struct LengthHead {
  Layer layer;
  Linear dense;
  Linear classes;  // n = 0 where the model has none
};

// Consecutive layers and the device that holds and computes them. The first part of a model looks its tokens up, the last
// one has its head; where there are two, the first is the processor's.
struct Part {
  const Ops* ops;
  Device* device;
  int first, last;  // layers [first, last)
};

struct ModelOptions {
  DeviceOptions device{};
  int gpu_layers = 0;  // see placement.h
};

// A tensor of the file that inputs are multiplied with: one matrix, or one per expert.
struct Multiplied {
  std::string name;
  int k;
  std::vector<const Weight*> matrices;
};

class Model {
 public:
  // `file` must outlive the model: embeddings are looked up in its bytes. The adapters are copied.
  Model(const Gguf& file, const Ops& ops, const ModelOptions& options, std::span<const Adapter> adapters = {});
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  const std::vector<Part>& parts() const { return parts_; }
  const Ops& ops() const { return *parts_.back().ops; }  // of the head
  Device* device() const { return parts_.back().device; }
  const std::string& isa() const { return isa_; }  // kernel rows, that of the head first
  int gpu_layers() const;
  const Weight* token_embedding() const { return token_embedding_; }
  const Weight* position_embedding() const { return position_embedding_; }  // null without learned positions
  const Weight* type_embedding() const { return type_embedding_; }          // null without; all tokens are of type 0
  const Norm& embedding_norm() const { return embedding_norm_; }
  const Norm& canvas_norm() const { return canvas_norm_; }
  const Feedback& feedback() const { return feedback_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const OutputHead& head() const { return head_; }
  const LengthHead& length_head() const { return length_head_; }
  const std::vector<Multiplied>& multiplied() const { return multiplied_; }
  uint64_t parameters() const { return parameters_; }
  uint64_t weight_bytes() const;
  // Tensors of the file that nothing here needs, as a sentence for people; empty where all are used.
  const std::string& skipped() const { return skipped_; }

 private:
  friend class Loader;
  void place(const Gguf& file, const Ops& ops, const ModelOptions& options);
  void release();

  // Weights and vectors are owned.
  struct PlacedWeight {
    const Ops* ops;
    Weight* weight;
  };
  struct PlacedVector {
    const Ops* ops;
    float* vector;
  };
  ModelConfig config_;
  std::vector<Part> parts_;
  std::string isa_;
  std::vector<PlacedWeight> weights_;
  std::vector<PlacedVector> vectors_;
  uint64_t vector_bytes_ = 0;
  uint64_t parameters_ = 0;
  const Weight* token_embedding_ = nullptr;
  const Weight* position_embedding_ = nullptr;
  const Weight* type_embedding_ = nullptr;
  Norm embedding_norm_{}, canvas_norm_{};
  Feedback feedback_;
  std::vector<Layer> layers_;
  OutputHead head_;
  LengthHead length_head_;
  std::vector<Multiplied> multiplied_;
  std::string skipped_;
};

}  // namespace ld
