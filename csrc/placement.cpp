#include "placement.h"

#include <algorithm>

#include "error.h"
#include "transformer.h"

namespace ld {
namespace {

// Bytes of the tensors whose names begin so.
size_t bytes_of(const Gguf& file, const std::string& prefix) {
  size_t bytes = 0;
  for (const Tensor& tensor : file.tensors())
    if (tensor.name.substr(0, prefix.size()) == prefix) bytes += tensor.data.size();
  return bytes;
}

}  // namespace

int layers_on(const Part& device, const Gguf& file, const Model& model, int wanted) {
  const ModelConfig& config = model.config();
  const bool feedback = file.tensor("self_cond_pre_norm.weight") != nullptr;
  if (wanted < kHeadAlone || wanted > config.layers)
    throw Error(LD_INVALID, text("gpu_layers is %d, expected 0 to %d, the layers of the model",
                                 wanted == kHeadAlone ? 0 : wanted, config.layers));
  if (feedback && wanted != kAsFit && wanted != config.layers)
    throw Error(LD_INVALID, "gpu_layers cannot be given to a model that is told what it expected; leave it out");
  if (wanted != kAsFit) return std::max(wanted, 0);
  size_t free, total;
  device.ops->memory(device.device, &free, &total);
  free -= free / kLeftFree;
  const Tensor* embedding = file.tensor("token_embd.weight");
  if (embedding == nullptr) return config.layers;  // the loader will tell
  const size_t tables = embedding->data.size() + bytes_of(file, "position_embd.") + bytes_of(file, "token_types.");
  size_t weights = file.tensor("output.weight") == nullptr ? embedding->data.size() : 0;
  for (const char* prefix : {"output", "mlm_", "length_head."}) weights += bytes_of(file, prefix);
  int fitting = -1;
  const int rows = std::min(config.context_length, kReckonedRows);
  for (int layers = 0; layers <= config.layers; layers++) {
    if (layers > 0) weights += bytes_of(file, text("blk.%d.", config.layers - layers));
    if (layers == config.layers) weights += tables - (file.tensor("output.weight") ? 0 : embedding->data.size());
    const Part part{device.ops, device.device, config.layers - layers, config.layers};
    ContextShape shape = part_shape(context_shape(model, 1, rows, rows, rows + 1), part);
    shape.vocab = static_cast<int>(embedding->rows());
    if (feedback) shape.width[static_cast<int>(Buffer::feedback)] = config.dim;
    size_t session = 0;
    for (const Math math : {Math::exact, Math::fast}) {
      shape.math = math;
      session = std::max(session, device.ops->plan(device.device, shape));
    }
    if (weights + session > free) break;
    fitting = layers;
  }
  if (feedback && fitting < config.layers) fitting = -1;
  if (fitting < 0)
    throw Error(LD_MEMORY, text("%zu MiB of GPU memory are free, which %s and a session do not fit; use the device cpu",
                                free >> 20, feedback ? "the model" : "the model's head"));
  return fitting;
}

}  // namespace ld
