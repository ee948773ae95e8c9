// gguf_dump FILE [read]: prints what the reader sees as one JSON object, for comparison with other readers. Contents
// are given as CRC-32 of their bytes in the file, scalars also as converted by the getters. Refused files: the reason
// on stderr and exit status 1. Not here: decoded weights (quant_tool.cpp).
#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "error.h"
#include "gguf.h"

namespace {

uint32_t crc32(std::span<const uint8_t> bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> rows{};
    for (uint32_t i = 0; i < 256; ++i) {
      rows[i] = i;
      for (int bit = 0; bit < 8; ++bit) rows[i] = rows[i] >> 1 ^ (rows[i] & 1 ? 0xedb88320 : 0);
    }
    return rows;
  }();
  uint32_t crc = 0xffffffff;
  for (uint8_t byte : bytes) crc = crc >> 8 ^ table[(crc ^ byte) & 255];
  return ~crc;
}

// Names are printable UTF-8: the reader has seen to it.
void print_name(std::string_view name) {
  putchar('"');
  for (char c : name) {
    if (c == '"' || c == '\\') putchar('\\');
    putchar(c);
  }
  putchar('"');
}

// As the getters give it; null where it is no scalar or a getter refuses it: negative or not finite.
void print_scalar(const ld::Gguf& file, const ld::Metadata& item) try {
  using ld::ValueType;
  switch (item.type) {
    case ValueType::string:
    case ValueType::array:
      printf("null");
      break;
    case ValueType::boolean:
      printf("%s", file.boolean(item.key, false) ? "true" : "false");
      break;
    case ValueType::f32:
    case ValueType::f64:
      printf("%.17g", file.real(item.key));
      break;
    default:
      printf("%" PRIu64, file.integer(item.key));
  }
} catch (const ld::Error&) {
  printf("null");
}

void print(const ld::Gguf& file) {
  printf("{\"metadata\": [");
  const char* separator = "\n";
  for (const ld::Metadata& item : file.metadata()) {
    printf("%s{\"key\": ", separator);
    print_name(item.key);
    printf(", \"type\": %d, \"element\": %d, \"count\": %" PRIu64 ", \"crc\": %u, \"found\": %s, \"value\": ",
           static_cast<int>(item.type), static_cast<int>(item.element), item.count, crc32(item.data),
           file.find(item.key) == &item ? "true" : "false");
    print_scalar(file, item);
    printf("}");
    separator = ",\n";
  }
  printf("],\n\"tensors\": [");
  separator = "\n";
  for (const ld::Tensor& tensor : file.tensors()) {
    printf("%s{\"name\": ", separator);
    print_name(tensor.name);
    printf(", \"type\": \"%s\", \"dims\": [", tensor.type->name);
    for (int i = 0; i < tensor.n_dims; ++i) printf(i ? ", %" PRIu64 : "%" PRIu64, tensor.dims[i]);
    printf("], \"offset\": %td, \"bytes\": %zu, \"crc\": %u, \"found\": %s}", tensor.data.data() - file.bytes().data(),
           tensor.data.size(), crc32(tensor.data), file.tensor(tensor.name) == &tensor ? "true" : "false");
    separator = ",\n";
  }
  printf("]}\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: gguf_dump FILE [read]\n");
    return 2;
  }
  try {
    const bool read = argc > 2 && strcmp(argv[2], "read") == 0;
    print(*ld::Gguf::open(argv[1], read ? ld::Gguf::Access::read : ld::Gguf::Access::map));
  } catch (const ld::Error& error) {
    fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
