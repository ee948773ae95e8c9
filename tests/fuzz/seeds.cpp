// seeds FOLDER PARTS: writes the files that fuzzing of the GGUF reader starts from, each with something the others lack, to
// one folder, and models in two parts, as fuzz_parts.cpp takes them, to the other.
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

Builder adapter() {
  Builder file(4, 4);
  file.text("general.type", "adapter").text("adapter.type", "lora").text("general.architecture", "llama");
  file.scalar<float>("adapter.lora.alpha", ValueType::f32, 8);
  file.tensor("blk.0.attn_q.weight.lora_a", 0, {32, 2}, 0).tensor("blk.0.attn_q.weight.lora_b", 0, {2, 8}, 256);
  file.tensor("blk.1.ffn_up.weight.lora_a", 1, {16, 1}, 320).tensor("blk.1.ffn_up.weight.lora_b", 1, {1, 16}, 352);
  return file.pad().data(384);
}

// Part `number` of two with `tensors` tensors, of three in all.
Builder part(uint16_t number, uint64_t tensors) {
  Builder file(tensors, 3);
  file.scalar<uint16_t>("split.no", ValueType::u16, number).scalar<uint16_t>("split.count", ValueType::u16, 2);
  file.scalar<int32_t>("split.tensors.count", ValueType::i32, 3);
  for (uint64_t i = 0; i < tensors; ++i) file.tensor("t" + std::to_string(number * 2 + i), 0, {8, 2}, 64 * i);
  return file.pad().data(64 * tensors);
}

Builder in_parts(const Builder& first, const Builder& second) {
  Builder both(0, 0);
  both.bytes.clear();
  both.put("length", static_cast<uint32_t>(first.bytes.size()));
  for (const Builder* each : {&first, &second})
    both.bytes.insert(both.bytes.end(), each->bytes.begin(), each->bytes.end());
  return both;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: seeds FOLDER PARTS\n");
    return 2;
  }
  write(argv[1], "small-model", small_model());
  write(argv[1], "tensor-types", every_tensor_type());
  write(argv[1], "alignment", wide_alignment());
  write(argv[1], "adapter", adapter());
  write(argv[2], "two-parts", in_parts(part(0, 2), part(1, 1)));
  write(argv[2], "metadata-first", in_parts(part(0, 0), part(1, 3)));
  write(argv[2], "whole", in_parts(small_model(), part(1, 1)));
  write(argv[1], "nothing", Builder(0, 0, 2).pad());
  write(argv[1], "vocabulary", Builder(0, 2).texts("tokens", {"a", "b", "c"}).text("general.architecture", "gpt2"));
}
