#include "model.h"

#include "error.h"
#include "loader.h"
#include "placement.h"

namespace ld {

Model::Model(const Gguf& file, const Ops& ops, const ModelOptions& options, std::span<const Adapter> adapters)
    : config_(read_config(file)) {
  try {
    place(file, ops, options);
    Loader(*this, file, adapters).run();
  } catch (...) {
    release();
    throw;
  }
}

Model::~Model() { release(); }

void Model::place(const Gguf& file, const Ops& ops, const ModelOptions& options) {
  const bool processor = &ops == &cpu_ops();
  if (processor && options.gpu_layers != kAsFit)
    throw Error(LD_INVALID, "gpu_layers needs a device plug-in, and the device is cpu; leave it out");
  parts_.push_back({&ops, ops.open(options.device), 0, config_.layers});
  isa_ = ops.isa(parts_[0].device);
  if (processor) return;
  parts_[0].first = config_.layers - layers_on(parts_[0], file, *this, options.gpu_layers);
  if (parts_[0].first == 0) return;
  parts_.insert(parts_.begin(), {&cpu_ops(), nullptr, 0, parts_[0].first});
  parts_[0].device = cpu_ops().open(options.device);
  isa_ += std::string(" + ") + cpu_ops().isa(parts_[0].device);
}

void Model::release() {
  for (const PlacedWeight& each : weights_)
    if (each.weight != nullptr) each.ops->release(each.weight);
  for (const PlacedVector& each : vectors_)
    if (each.vector != nullptr) each.ops->release_vector(each.vector);
  for (const Part& part : parts_)
    if (part.device != nullptr) part.ops->close(part.device);
}

int Model::gpu_layers() const {
  const Part& last = parts_.back();
  return last.ops == &cpu_ops() ? 0 : last.last - last.first;
}

uint64_t Model::weight_bytes() const {
  uint64_t bytes = vector_bytes_;
  for (const PlacedWeight& each : weights_) bytes += each.ops->weight_bytes(each.weight);
  return bytes;
}

}  // namespace ld
