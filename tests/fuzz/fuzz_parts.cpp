// Coverage-guided fuzzing of models in parts: two files that are opened by path. An input holds the length of the first
// file in four bytes, then both; a change touches one of them. They are written to FUZZ_FOLDER, best in memory.
//
// What is accepted, by either access, must hold every byte of the tensors of both files.
// Not here: the format of one file (fuzz_gguf.cpp). Run it with tests/fuzz/run.sh.
#include <fcntl.h>
#include <unistd.h>

#include "error.h"
#include "mutator.h"

using namespace ld;
using namespace ld::test;

namespace {

constexpr size_t kLength = 4;

// Both files, whatever the length claims.
std::pair<std::span<const uint8_t>, std::span<const uint8_t>> files_of(std::span<const uint8_t> input) {
  if (input.size() < kLength) return {};
  const size_t rest = input.size() - kLength, first = std::min<size_t>(get_number<uint32_t>(input.data()), rest);
  return {input.subspan(kLength, first), input.subspan(kLength + first)};
}

std::string part_path(int part) {
  static const std::string folder = getenv("FUZZ_FOLDER") ? getenv("FUZZ_FOLDER") : ".";
  return folder + "/part-0000" + std::to_string(part) + "-of-00002.gguf";
}

void write(const std::string& path, std::span<const uint8_t> bytes) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || ::write(file, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()) || close(file) != 0) {
    perror(path.c_str());
    exit(1);
  }
}

void promise(bool kept) {
  if (!kept) abort();
}

bool same(std::span<const uint8_t> a, std::span<const uint8_t> b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size()) == 0;
}

// Whether the model holds what one of its files holds; returns the number of its tensors.
size_t check_part(const Gguf& model, std::span<const uint8_t> bytes) {
  const auto part = Gguf::parse(bytes);
  for (const Tensor& tensor : part->tensors()) {
    const Tensor* found = model.tensor(tensor.name);
    promise(found != nullptr && found->type == tensor.type && std::equal(found->dims, found->dims + 4, tensor.dims));
    promise(same(found->data, tensor.data));
  }
  return part->tensors().size();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto [first, second] = files_of({data, size});
  write(part_path(1), first);
  write(part_path(2), second);
  for (const auto access : {Gguf::Access::map, Gguf::Access::read}) {
    try {
      const auto model = Gguf::open(part_path(1), access);
      const bool both = model->integer("split.count", 1) == 2;
      promise(model->tensors().size() == check_part(*model, first) + (both ? check_part(*model, second) : 0));
      promise(same(model->bytes(), first));
    } catch (const Error& error) {
      if (error.status() != LD_FILE || strstr(error.what(), "part-0000") == nullptr) abort();
    }
  }
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
  const auto [first, second] = files_of({data, size});
  Bytes files[2] = {{first.begin(), first.end()}, {second.begin(), second.end()}};
  const size_t each = (max_size - kLength) / 2;
  Mutator(files[seed % 2], each, seed).run();
  for (Bytes& file : files) file.resize(std::min(file.size(), each));
  const uint32_t length = static_cast<uint32_t>(files[0].size());
  memcpy(data, &length, kLength);
  std::copy(files[0].begin(), files[0].end(), data + kLength);
  std::copy(files[1].begin(), files[1].end(), data + kLength + length);
  return kLength + files[0].size() + files[1].size();
}
