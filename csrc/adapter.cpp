// Checks come first and name the tensor; decoding to float32 happens once, when a layer is packed.
#include "adapter.h"

#include <cmath>

#include "error.h"

namespace ld {
namespace {

constexpr std::string_view kA = ".lora_a", kB = ".lora_b";

[[noreturn]] void refuse(const std::string& problem) { throw Error(LD_FILE, "the adapter " + problem); }

void expect_string(const Gguf& file, const char* key, const std::string& expected) {
  const std::string_view found = file.string(key, "absent");
  if (found != expected)
    refuse(text("has %s '%.*s', expected '%s'", key, static_cast<int>(std::min<size_t>(found.size(), 64)), found.data(),
                expected.c_str()));
}

std::vector<float> decode(const Tensor& tensor) {
  std::vector<float> values(tensor.columns() * tensor.rows());
  tensor.type->decode(tensor.data.data(), values.data(), values.size());
  return values;
}

}  // namespace

Adapters::Adapters(std::span<const Adapter> adapters, const std::string& arch) : adapters_(adapters) {
  for (const Adapter& adapter : adapters) {
    const Gguf& file = *adapter.file;
    expect_string(file, "general.type", "adapter");
    expect_string(file, "adapter.type", "lora");
    expect_string(file, "general.architecture", arch);
    if (file.find("adapter.alora.invocation_tokens") != nullptr)
      refuse("is an activated one (adapter.alora.invocation_tokens), which is not supported");
    if (!std::isfinite(adapter.scale)) throw Error(LD_INVALID, "the scale of an adapter is not finite");
    for (const Tensor& tensor : file.tensors()) {
      const std::string name(tensor.name);
      const bool is_a = tensor.name.ends_with(kA);
      if (!is_a && !tensor.name.ends_with(kB)) refuse("holds " + name + ", which is neither lora_a nor lora_b");
      const std::string base = name.substr(0, name.size() - kA.size());
      if (file.tensor(base + std::string(is_a ? kB : kA)) == nullptr)
        refuse("holds only one of the two factors: " + name);
      if (tensor.type->decode == nullptr)
        refuse("stores " + name + " as " + tensor.type->name + ", which is not supported");
    }
  }
}

std::vector<Adapters::Pair> Adapters::pairs(const std::string& name) const {
  std::vector<Pair> found;
  for (const Adapter& adapter : adapters_) {
    const Tensor* a = adapter.file->tensor(name + std::string(kA));
    if (a == nullptr) continue;
    const double alpha = adapter.file->real("adapter.lora.alpha", 0);  // 0: the factors are scaled already
    const double rank = static_cast<double>(a->rows());
    found.push_back({a, adapter.file->tensor(name + std::string(kB)), adapter.scale * (alpha == 0 ? 1 : alpha / rank)});
  }
  return found;
}

int Adapters::rank(const std::string& name, int n, int k) {
  uint64_t rank = 0;
  for (const auto& [a, b, scale] : pairs(name)) {
    const uint64_t own = a->rows();
    if (a->columns() != static_cast<uint64_t>(k) || b->rows() != static_cast<uint64_t>(n) || b->columns() != own)
      refuse(text(
          "does not fit %s: it is [%d, %d] and the factors are [%llu, %llu] and [%llu, %llu]; is it the adapter "
          "of another model?",
          name.c_str(), n, k, static_cast<unsigned long long>(b->rows()), static_cast<unsigned long long>(b->columns()),
          static_cast<unsigned long long>(own), static_cast<unsigned long long>(a->columns())));
    rank += own;
    used_.insert(name);
  }
  if (rank > static_cast<uint64_t>(k))
    refuse(
        text("gives %s rank %llu, more than its %d columns", name.c_str(), static_cast<unsigned long long>(rank), k));
  return static_cast<int>(rank);
}

Factors Adapters::factors(const std::string& name, int n, int k) const {
  Factors all;
  const std::vector<Pair> found = pairs(name);
  for (const Pair& pair : found) all.rank += static_cast<int>(pair.a->rows());
  all.b.resize(static_cast<size_t>(n) * all.rank);
  all.a.reserve(static_cast<size_t>(all.rank) * k);
  int column = 0;
  for (const Pair& pair : found) {
    const int rank = static_cast<int>(pair.a->rows());
    const std::vector<float> a = decode(*pair.a), b = decode(*pair.b);
    all.a.insert(all.a.end(), a.begin(), a.end());
    for (int row = 0; row < n; row++)
      for (int r = 0; r < rank; r++)
        all.b[static_cast<size_t>(row) * all.rank + column + r] =
            static_cast<float>(pair.scale * b[static_cast<size_t>(row) * rank + r]);
    column += rank;
  }
  return all;
}

void Adapters::refuse_unused() const {
  for (const Adapter& adapter : adapters_) {
    for (const Tensor& tensor : adapter.file->tensors()) {
      const std::string base(tensor.name.substr(0, tensor.name.size() - kA.size()));
      if (!used_.count(base))
        refuse("changes " + base +
               ", which this model lacks or which cannot be changed while it runs; merge the adapter "
               "when the model is converted");
    }
  }
}

}  // namespace ld
