// Opening by path, and the parts of a split model, NAME-00001-of-00003.gguf and so on, as one description. The parts say
// in their metadata which they are (split.no, split.count) and how many tensors all of them have (split.tensors.count);
// the first part's metadata speaks for the model. Every part is a whole GGUF file and checked as one. Not here: writing.
#include <cinttypes>

#include "error.h"
#include "gguf_internal.h"

namespace ld {
namespace {

constexpr uint64_t kMaxParts = 65535;
constexpr const char* kNumber = "split.no";  // from 0; file names count from 1
constexpr const char* kCount = "split.count";
constexpr const char* kTensors = "split.tensors.count";

std::string suffix_of(uint64_t number, uint64_t count) {
  return text("-%05" PRIu64 "-of-%05" PRIu64 ".gguf", number + 1, count);
}

[[noreturn]] void refuse(const std::string& path, const std::string& problem) {
  throw Error(LD_FILE, path + ": " + problem);
}

void expect(const std::string& path, const char* key, uint64_t found, uint64_t expected) {
  if (found == expected) return;
  refuse(path, text("metadata '%s' is %" PRIu64 ", expected %" PRIu64 "; are all parts of the same model?", key, found,
                    expected));
}

}  // namespace

std::unique_ptr<Gguf> Gguf::open_part(const std::string& path, Access access) {
  std::unique_ptr<Gguf> part(new Gguf);
  part->files_.emplace_back(path, access);
  part->bytes_ = part->files_.front().bytes();
  try {
    part->describe();
    part->part_ = {part->integer(kNumber, 0), part->integer(kCount, 1), 0};
    if (part->part_.count > 1) part->part_.tensors = part->integer(kTensors);
  } catch (const Error& error) {
    throw Error(error.status(), path + ": " + error.what());
  }
  return part;
}

std::unique_ptr<const Gguf> Gguf::open(const std::string& path, Access access) {
  std::unique_ptr<Gguf> file = open_part(path, access);
  const auto [number, count, tensors] = file->part_;
  if (count <= 1) return file;
  if (count > kMaxParts || number >= count)
    refuse(path, text("is part %" PRIu64 " of %" PRIu64 ", expected at most 65535 and one of them", number + 1, count));
  const std::string suffix = suffix_of(number, count);
  if (!path.ends_with(suffix))
    refuse(path, text("is part %" PRIu64 " of %" PRIu64 ", but its name does not end in %s; give the parts their names "
                      "back to find the others",
                      number + 1, count, suffix.c_str()));
  const std::string stem = path.substr(0, path.size() - suffix.size());
  if (number != 0)
    refuse(path, text("is part %" PRIu64 " of %" PRIu64 "; open the first, %s", number + 1, count,
                      (stem + suffix_of(0, count)).c_str()));

  for (uint64_t i = 1; i < count; ++i) {
    const std::string sibling = stem + suffix_of(i, count);
    std::unique_ptr<Gguf> part = open_part(sibling, access);
    expect(sibling, kNumber, part->part_.number, i);
    expect(sibling, kCount, part->part_.count, count);
    expect(sibling, kTensors, part->part_.tensors, tensors);
    if (part->tensors_.size() > kMaxCount - file->tensors_.size()) refuse(sibling, "makes more than 65536 tensors");
    file->tensors_.insert(file->tensors_.end(), part->tensors_.begin(), part->tensors_.end());
    file->files_.push_back(std::move(part->files_.front()));
  }
  expect(path, kTensors, tensors, file->tensors_.size());
  file->tensor_order_ = sorted_by(file->tensors_, name_of_tensor);
  if (const size_t at = find_repeated(file->tensors_, file->tensor_order_, name_of_tensor))
    refuse(path, "tensor " + shown(file->tensors_[file->tensor_order_[at]].name) + " is in two of its parts");
  return file;
}

}  // namespace ld
