// quant_tool types:         prints "number name block bytes decodable" for every row of the table of tensor types.
// quant_tool decode TYPE:   reads blocks of a type (its number) from stdin, writes their values to stdout as float32.
// quant_tool finite TYPE:   the same, but writes one byte per block: 1 where its scales are finite.
// quant_tool to_half|to_bfloat:   reads float32, writes 16-bit values.
// For comparison with other implementations. Not here: whole files (gguf_dump.cpp).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "quant/half.h"
#include "quant/types.h"

namespace {

std::vector<uint8_t> read_stdin() {
  std::vector<uint8_t> bytes;
  uint8_t chunk[1 << 16];
  while (const size_t got = fread(chunk, 1, sizeof chunk, stdin)) bytes.insert(bytes.end(), chunk, chunk + got);
  return bytes;
}

template <class T>
int write_all(const std::vector<T>& values) {
  return fwrite(values.data(), sizeof(T), values.size(), stdout) == values.size() ? 0 : 1;
}

void print_types() {
  for (int number = -1; number < 1000; ++number) {
    const ld::TypeTraits* row = ld::type_traits(number);
    if (row == nullptr) continue;
    printf("%d %s %u %u %d\n", number, row->name, row->block, row->block_bytes, row->decode != nullptr);
  }
}

int decode(const ld::TypeTraits& type, const std::vector<uint8_t>& blocks) {
  std::vector<float> values(blocks.size() / type.block_bytes * type.block);
  type.decode(blocks.data(), values.data(), values.size());
  return write_all(values);
}

int finite(const ld::TypeTraits& type, const std::vector<uint8_t>& blocks) {
  std::vector<uint8_t> answers(blocks.size() / type.block_bytes);
  for (size_t i = 0; i < answers.size(); ++i) {
    answers[i] = type.finite(blocks.data() + i * type.block_bytes, type.block);
  }
  return write_all(answers);
}

int convert(const std::vector<uint8_t>& bytes, uint16_t (*one)(float)) {
  std::vector<uint16_t> values(bytes.size() / sizeof(float));
  for (size_t i = 0; i < values.size(); ++i) {
    float value;
    memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
    values[i] = one(value);
  }
  return write_all(values);
}

}  // namespace

int main(int argc, char** argv) {
  const char* command = argc > 1 ? argv[1] : "";
  if (strcmp(command, "types") == 0) return print_types(), 0;
  if (strcmp(command, "to_half") == 0) return convert(read_stdin(), ld::float_to_half);
  if (strcmp(command, "to_bfloat") == 0) return convert(read_stdin(), ld::float_to_bfloat);
  const ld::TypeTraits* type = argc > 2 ? ld::type_traits(atoi(argv[2])) : nullptr;
  if (type == nullptr || type->decode == nullptr) {
    fprintf(stderr, "usage: quant_tool types | decode TYPE | finite TYPE | to_half | to_bfloat\n");
    return 2;
  }
  return strcmp(command, "finite") == 0 ? finite(*type, read_stdin()) : decode(*type, read_stdin());
}
