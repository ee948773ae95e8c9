#include "model.h"

#include "loader.h"

namespace ld {

Model::Model(const Gguf& file, const Ops& ops, const DeviceOptions& options, std::span<const Adapter> adapters)
    : ops_(ops), config_(read_config(file)), device_(ops.open(options)) {
  try {
    Loader(*this, file, adapters).run();
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
