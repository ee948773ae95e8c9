// seeds FOLDER: writes the files that fuzzing of the GGUF reader starts from, each with something the others lack.
#include <cstdio>

#include "../cpp/gguf_bytes.h"

using namespace ld;
using namespace ld::test;

namespace {

void write(const std::string& folder, const char* name, const Builder& file) {
  FILE* out = fopen((folder + "/" + name).c_str(), "wb");
  if (out == nullptr || fwrite(file.bytes.data(), 1, file.bytes.size(), out) != file.bytes.size() || fclose(out) != 0) {
    perror(name);
    exit(1);
  }
}

Builder every_tensor_type() {
  uint64_t count = 0, offset = 0;
  for (int32_t type = 0; type < 64; ++type) count += type_traits(type) != nullptr;
  Builder file(count, 0);
  for (int32_t type = 0; type < 64; ++type) {
    const TypeTraits* row = type_traits(type);
    if (row == nullptr) continue;
    file.tensor(row->name, type, {row->block, 2}, offset);
    offset += (2 * row->block_bytes + 31) / 32 * 32;
  }
  return file.pad().data(offset);
}

Builder wide_alignment() {
  Builder file(2, 1);
  file.scalar<uint32_t>("general.alignment", ValueType::u32, 512).tensor("b", 0, {4}, 512).tensor("a", 0, {3}, 0);
  return file.pad(512).data(1024);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: seeds FOLDER\n");
    return 2;
  }
  write(argv[1], "small-model", small_model());
  write(argv[1], "tensor-types", every_tensor_type());
  write(argv[1], "alignment", wide_alignment());
  write(argv[1], "nothing", Builder(0, 0, 2).pad());
  write(argv[1], "vocabulary", Builder(0, 2).texts("tokens", {"a", "b", "c"}).text("general.architecture", "gpt2"));
}
