// Loading: every tensor is looked up by name, checked against the configuration and handed to the device. All that is
// missing and all that is not understood is reported at once, because a file is repaired in one go or not at all.
#include "model.h"

#include <cmath>
#include <set>
#include <string>

#include "error.h"

namespace ld {

class Model::Loader {
 public:
  Loader(Model& model, const Gguf& file) : model_(model), file_(file) {}

  void run() {
    ModelConfig& config = model_.config_;
    const Tensor* embedding = require("token_embd.weight");
    if (embedding != nullptr) config.vocab = static_cast<int>(embedding->rows());
    declare();
    refuse_incomplete();
    for (const Tensor& tensor : file_.tensors())
      if (!used_.count(std::string(tensor.name))) unused_.push_back(std::string(tensor.name));
    if (!unused_.empty())
      throw Error(LD_FILE,
                  "the file holds tensors that architecture '" + config.arch + "' does not use: " + join(unused_));
    declaring_ = false;
    declare();
    for (const Tensor& tensor : file_.tensors()) model_.parameters_ += tensor.columns() * tensor.rows();
  }

 private:
  // Walks the whole model. The first walk (declaring_) only checks names and shapes, the second one packs: nothing is
  // repacked for a file that will be refused.
  void declare() {
    Model& m = model_;
    const ModelConfig& c = m.config_;
    m.layers_.clear();
    m.token_embedding_ = table("token_embd.weight", c.vocab);
    if (c.learned_positions) m.position_embedding_ = table("position_embd.weight", c.context_length);
    for (int i = 0; i < c.layers; i++) {
      const std::string block = "blk." + std::to_string(i) + ".";
      Layer layer;
      layer.attention_norm = norm(block + "attn_norm");
      if (file_.tensor(block + "attn_qkv.weight") != nullptr) {
        layer.qkv = {linear(block + "attn_qkv", c.qkv_dim(), c.dim)};
      } else {
        layer.qkv = {linear(block + "attn_q", c.heads * c.head_dim, c.dim),
                     linear(block + "attn_k", c.kv_heads * c.head_dim, c.dim),
                     linear(block + "attn_v", c.kv_heads * c.head_dim, c.dim)};
      }
      layer.attention_output = linear(block + "attn_output", c.dim, c.heads * c.head_dim);
      layer.ffn_norm = norm(block + "ffn_norm");
      if (c.gated) layer.gate = linear(block + "ffn_gate", c.ffn_dim, c.dim);
      layer.up = linear(block + "ffn_up", c.ffn_dim, c.dim);
      layer.down = linear(block + "ffn_down", c.dim, c.ffn_dim);
      m.layers_.push_back(std::move(layer));
    }
    m.output_norm_ = norm("output_norm");
    // Without a head of its own the model reuses the token embedding.
    m.head_ = linear(file_.tensor("output.weight") != nullptr ? "output" : "token_embd", c.vocab, c.dim);
    if (c.rope != Rope::none) rope();
  }

  const Tensor* find(const std::string& name) {
    const Tensor* tensor = file_.tensor(name);
    if (tensor != nullptr) used_.insert(name);
    return tensor;
  }

  const Tensor* require(const std::string& name) {
    const Tensor* tensor = find(name);
    if (tensor == nullptr && declaring_) missing_.push_back(name);
    return tensor;
  }

  void check_shape(const Tensor& tensor, uint64_t rows, uint64_t columns) {
    if (tensor.columns() != columns || tensor.rows() != rows)
      throw Error(LD_FILE,
                  text("%.*s: shape [%llu, %llu], expected [%llu, %llu]", (int)tensor.name.size(), tensor.name.data(),
                       (unsigned long long)tensor.rows(), (unsigned long long)tensor.columns(),
                       (unsigned long long)rows, (unsigned long long)columns));
    if (tensor.type->decode == nullptr)
      throw Error(LD_FILE, text("%.*s: type %s is not supported yet", (int)tensor.name.size(), tensor.name.data(),
                                tensor.type->name));
  }

  const Weight* matrix(const std::string& name, int rows, int columns, Use use) {
    const Tensor* tensor = require(name);
    if (tensor == nullptr) return nullptr;
    check_shape(*tensor, rows, columns);
    if (declaring_) return nullptr;
    model_.weights_.push_back(nullptr);  // room first, so that a packed weight is never lost
    model_.weights_.back() = model_.ops_.pack(model_.device_, *tensor, use);
    // The packed copy replaces the file's; a table that shares the tensor reads the rows that it needs again.
    if (use == Use::multiply) file_.forget(*tensor);
    return model_.weights_.back();
  }

  const Weight* table(const std::string& name, int rows) { return matrix(name, rows, model_.config_.dim, Use::gather); }

  const float* vector(const std::string& name, int length, bool optional) {
    const Tensor* tensor = optional ? find(name) : require(name);
    if (tensor == nullptr) return nullptr;
    check_shape(*tensor, 1, length);
    if (declaring_) return nullptr;
    std::vector<float> values(length);
    tensor->type->decode(tensor->data.data(), values.data(), length);
    for (float value : values)
      if (!std::isfinite(value)) throw Error(LD_FILE, name + ": holds a value that is not finite");
    return upload(values);
  }

  const float* upload(const std::vector<float>& values) {
    model_.vectors_.push_back(nullptr);
    model_.vector_bytes_ += values.size() * sizeof(float);
    return model_.vectors_.back() = model_.ops_.upload(model_.device_, values.data(), values.size());
  }

  Linear linear(const std::string& name, int n, int k) {
    Linear result;
    result.n = n;
    result.weight = matrix(name + ".weight", n, k, Use::multiply);
    result.bias = vector(name + ".bias", n, true);
    return result;
  }

  Norm norm(const std::string& name) {
    const ModelConfig& c = model_.config_;
    const bool has_bias = c.norm == NormKind::layer;
    return {c.norm, vector(name + ".weight", c.dim, false), has_bias ? vector(name + ".bias", c.dim, false) : nullptr,
            c.norm_eps};
  }

  void rope() {
    const ModelConfig& c = model_.config_;
    const int half = c.rope_dims / 2;
    std::vector<float> factors(half, 1.0f);  // Llama 3 scales each frequency by a stored factor
    if (const Tensor* tensor = find("rope_freqs.weight")) {
      check_shape(*tensor, 1, half);
      tensor->type->decode(tensor->data.data(), factors.data(), half);
    }
    std::vector<float> frequencies(half);
    for (int i = 0; i < half; i++) {
      if (!(factors[i] > 0 && std::isfinite(factors[i])))
        throw Error(LD_FILE, text("rope_freqs.weight: value %d is %g, expected more than 0", i, factors[i]));
      frequencies[i] =
          static_cast<float>(std::pow(c.rope_theta, -2.0 * i / c.rope_dims) / (c.rope_factor * factors[i]));
    }
    if (!declaring_) model_.rope_ = {c.rope, c.rope_dims, upload(frequencies)};
  }

  void refuse_incomplete() {
    if (!missing_.empty())
      throw Error(LD_FILE,
                  "architecture '" + model_.config_.arch + "' needs tensors that the file lacks: " + join(missing_));
  }

  // The first few names: a wrong architecture lacks hundreds.
  static std::string join(const std::vector<std::string>& names) {
    std::string list;
    for (size_t i = 0; i < names.size() && i < 8; i++) list += (i ? ", " : "") + names[i];
    if (names.size() > 8) list += " and " + std::to_string(names.size() - 8) + " more";
    return list;
  }

  Model& model_;
  const Gguf& file_;
  bool declaring_ = true;
  std::set<std::string> used_;
  std::vector<std::string> missing_, unused_;
};

Model::Model(const Gguf& file, const Ops& ops, const DeviceOptions& options)
    : ops_(ops), config_(read_config(file)), device_(ops.open(options)) {
  try {
    Loader(*this, file).run();
  } catch (...) {
    release();
    throw;
  }
}

Model::~Model() { release(); }

void Model::release() {
  for (Weight* weight : weights_)
    if (weight != nullptr) ops_.release(weight);
  for (float* vector : vectors_)
    if (vector != nullptr) ops_.release_vector(vector);
  ops_.close(device_);
}

uint64_t Model::weight_bytes() const {
  uint64_t bytes = vector_bytes_;
  for (const Weight* weight : weights_) bytes += ops_.weight_bytes(weight);
  return bytes;
}

}  // namespace ld
