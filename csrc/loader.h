// Fills a Model from a file: every tensor is looked up by name, checked against the configuration and handed to the
// device. All that is missing and all that is not understood is reported at once, because a file is repaired in one go
// or not at all.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "model.h"

namespace ld {

class Loader {
 public:
  Loader(Model& model, const Gguf& file, std::span<const Adapter> adapters)
      : model_(model), file_(file), adapters_(adapters, model.config_.arch) {}
  void run();

 private:
  // Walks the whole model. The first walk (declaring_) only checks names and shapes, the second one packs: nothing is
  // repacked for a file that will be refused.
  void declare();
  Layer layer(int index);
  FeedForward feed_forward(const std::string& block, const char* suffix, int width);
  Experts experts(const std::string& block, std::vector<const Weight*>* weights);
  void feedback();
  void head();
  LengthHead length_head(const Tensor& classes);
  RopeParams rope(int table, const RopeConfig& config, const char* divisors);

  const Tensor* find(const std::string& name);
  const Tensor* require(const std::string& name);
  const Weight* pack(const Tensor& tensor, Use use);
  const Weight* matrix(const std::string& name, int rows, int columns, Use use);
  const Weight* table(const std::string& name, int rows);
  const Weight* float_matrix(const std::string& name, int rows, int columns);
  const Weight* pack_floats(const std::string& name, int rows, int columns, const std::vector<float>& values);
  struct Stack;
  void slices(const Stack& stack, std::vector<const Weight*>* out);
  const float* vector(const std::string& name, int length, bool optional);
  float number(const std::string& name);
  const float* upload(const std::vector<float>& values);
  Linear linear(const std::string& name, int n, int k);
  Linear adaptable(const std::string& name, int n, int k);
  void widen(const std::vector<Linear>& parts);
  Norm norm(const std::string& name);
  Norm layer_norm(const std::string& name, float eps);
  Norm head_norm(const std::string& name, int head_dim);
  Norm plain_norm(int width);
  Norm router_norm(const std::string& name);

  void refuse_missing() const;
  void sort_unused();

  Model& model_;
  const Part* part_ = nullptr;  // that the next tensors go to
  const Gguf& file_;
  Adapters adapters_;
  bool declaring_ = true;
  std::set<std::string> used_;
  std::vector<std::string> missing_;
};

}  // namespace ld
