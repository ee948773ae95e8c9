// Coverage-guided fuzzing of the GGUF reader and of what takes a file for a LoRA adapter.
//
// An execution parses the bytes; what is accepted is read to the last byte and every promise of gguf.h is checked. Then
// it is offered as an adapter for a model that has just the matrices whose factors it claims to hold.
// Not here: files by path (tests/cpp/test_file.cpp), models in parts (fuzz_parts.cpp). Run it with tests/fuzz/run.sh.
#include "adapter.h"
#include "error.h"
#include "mutator.h"

using namespace ld;
using namespace ld::test;

// Runs what may be refused, by Error only.
template <class Work>
static void attempt(Work work) {
  try {
    work();
  } catch (const Error&) {
  }
}

// Asks for a key in every way.
static void ask(const Gguf& file, std::string_view key) {
  attempt([&] { file.integer(key); });
  attempt([&] { file.integer(key, 1); });
  attempt([&] { file.real(key); });
  attempt([&] { file.real(key, 1.0); });
  attempt([&] { file.boolean(key, false); });
  attempt([&] { file.string(key); });
  attempt([&] { file.string(key, ""); });
}

// Every pair of factors, for the matrix that it fits and for one that is smaller.
static void adapt(const Gguf& file) {
  const Adapter adapter[] = {{&file, 0.5f}};
  Adapters adapters(adapter, "llama");
  for (const Tensor& a : file.tensors()) {
    if (!a.name.ends_with(".lora_a")) continue;
    const std::string name(a.name.substr(0, a.name.size() - 7));
    const Tensor* b = file.tensor(name + ".lora_b");
    if (b == nullptr) abort();  // accepted without its other half
    attempt([&] { adapters.rank(name, 1, 32); });
    attempt([&] {
      const int n = static_cast<int>(b->rows()), k = static_cast<int>(a.columns());
      const int rank = adapters.rank(name, n, k);
      const Factors factors = adapters.factors(name, n, k);
      if (factors.rank != rank || rank > k) abort();
      if (factors.a.size() != static_cast<size_t>(rank) * k || factors.b.size() != static_cast<size_t>(n) * rank)
        abort();
    });
  }
  adapters.refuse_unused();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto file = Gguf::parse({data, size});
    use_everything(*file);
    for (const Metadata& item : file->metadata()) ask(*file, item.key);
    ask(*file, "absent");
    attempt([&] { adapt(*file); });
  } catch (const Error& error) {
    const bool located = strstr(error.what(), " at byte ") || strstr(error.what(), "not a GGUF file");
    if (!located || error.status() != LD_FILE) abort();
  }
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
  Bytes bytes(data, data + size);
  Mutator(bytes, max_size, seed).run();
  std::copy(bytes.begin(), bytes.end(), data);
  return bytes.size();
}
