// GGUF bytes for tests: a builder that writes a file field by field and remembers where each field lies, one small
// valid model, and a reader's work over an accepted file. Shared by test_gguf.cpp and the fuzzer. Nothing here checks
// what it writes, so that wrong files can be built as easily as right ones.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "gguf.h"

namespace ld::test {

// What a change of a field must lead to. structure: always refused. name: refused where it is no longer printable or
// unique. type: another type of the same size cannot be noticed. content: cannot be noticed, the format has no
// checksum.
enum class Part { structure, name, type, content };

struct Field {
  std::string label;  // "n_kv", "KEY.length", "KEY.type", "KEY.count", "KEY.value", "NAME.dims[1]", "NAME.offset", ...
  size_t at, size;
  Part part;
};

class Builder {
 public:
  std::vector<uint8_t> bytes;
  std::vector<Field> fields;

  Builder(uint64_t n_tensors, uint64_t n_kv, uint32_t version = 3) {
    raw("magic", "GGUF", Part::structure);
    put("version", version, Part::type);
    put("n_tensors", n_tensors);
    put("n_kv", n_kv);
  }

  template <class T>
  Builder& put(const std::string& label, T value, Part part = Part::structure) {
    return raw(label, {reinterpret_cast<const char*>(&value), sizeof value}, part);
  }

  Builder& raw(const std::string& label, std::string_view data, Part part) {
    fields.push_back({label, bytes.size(), data.size(), part});
    bytes.insert(bytes.end(), data.begin(), data.end());
    return *this;
  }

  Builder& string(const std::string& label, std::string_view value, Part part) {
    put<uint64_t>(label + ".length", value.size());
    return raw(label, value, part);
  }

  Builder& key(const std::string& key, ValueType type) {
    string(key, key, Part::name);
    return put(key + ".type", type, Part::type);
  }

  template <class T>
  Builder& scalar(const std::string& name, ValueType type, T value, Part part = Part::content) {
    return key(name, type).put(name + ".value", value, part);
  }

  Builder& text(const std::string& name, std::string_view value) {
    return key(name, ValueType::string).string(name + ".value", value, Part::content);
  }

  // The start of an array; its elements follow by put() or string().
  Builder& array(const std::string& name, ValueType element, uint64_t count) {
    return key(name, ValueType::array).put(name + ".element", element, Part::type).put(name + ".count", count);
  }

  Builder& texts(const std::string& name, const std::vector<std::string>& values) {
    array(name, ValueType::string, values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      string(name + ".value[" + std::to_string(i) + "]", values[i], Part::content);
    }
    return *this;
  }

  Builder& tensor(const std::string& name, int32_t type, const std::vector<uint64_t>& dims, uint64_t offset) {
    string(name, name, Part::name);
    put(name + ".n_dims", static_cast<uint32_t>(dims.size()));
    for (size_t i = 0; i < dims.size(); ++i) put(name + ".dims[" + std::to_string(i) + "]", dims[i]);
    return put(name + ".type", type).put(name + ".offset", offset);
  }

  Builder& pad(uint64_t alignment = 32, Part part = Part::structure) {
    return raw("padding", std::string((alignment - bytes.size() % alignment) % alignment, '\0'), part);
  }

  Builder& data(size_t size) { return raw("data", std::string(size, '\x11'), Part::content); }

  const Field& field(const std::string& label) const {
    for (const Field& each : fields) {
      if (each.label == label) return each;
    }
    abort();  // a mistake in the test
  }
};

// A valid file with every type of value and several types of tensors. Every single-bit change of a structural field
// changes where something lies. The last tensor is followed by four bytes of padding.
inline Builder small_model() {
  Builder b(4, 18);
  b.text("general.architecture", "llama");
  b.scalar<uint32_t>("general.alignment", ValueType::u32, 32, Part::structure);
  b.scalar<uint8_t>("x.u8", ValueType::u8, 200);
  b.scalar<int8_t>("x.i8", ValueType::i8, -3);
  b.scalar<uint16_t>("x.u16", ValueType::u16, 60000);
  b.scalar<int16_t>("x.i16", ValueType::i16, 30000);
  b.scalar<uint32_t>("x.u32", ValueType::u32, 4000000000u);
  b.scalar<int32_t>("x.i32", ValueType::i32, 77);
  b.scalar<float>("x.f32", ValueType::f32, 1.5f);
  b.scalar<uint8_t>("x.bool", ValueType::boolean, 1);
  b.scalar<uint64_t>("x.u64", ValueType::u64, uint64_t{1} << 63);
  b.scalar<int64_t>("x.i64", ValueType::i64, int64_t{-5});
  b.scalar<double>("x.f64", ValueType::f64, 0.1);
  b.array("x.scores", ValueType::f32, 3).put("x.scores.value", std::array<float, 3>{1, 2, 3}, Part::content);
  b.array("x.flags", ValueType::boolean, 2).raw("x.flags.value", std::string_view("\1\0", 2), Part::content);
  b.texts("x.tokens", {"", "a", "b\xe2\x96\x81", std::string("nul\0", 4)});
  b.text("x.empty", "");
  b.array("x.none", ValueType::i32, 0);
  b.tensor("token_embd.weight", 0, {8, 6}, 0);           // F32: 192 bytes
  b.tensor("blk.0.attn_q.weight", 8, {32, 16}, 192);     // Q8_0: 544
  b.tensor("blk.0.attn_q.bias", 1, {16, 1, 1, 2}, 736);  // F16: 64
  b.tensor("output_norm.weight", 12, {256, 1}, 800);     // Q4_K: 144
  b.pad().data(944);
  return b.raw("data padding", std::string(16, '\0'), Part::content);
}

// Everything that later code does with an accepted file: reads every byte that was handed out, asks for every name,
// decodes every row. Aborts where the description breaks a promise of gguf.h.
inline uint64_t use_everything(const Gguf& file) {
  auto promise = [](bool kept) {
    if (!kept) abort();
  };
  const uint8_t* begin = file.bytes().data();
  const uint8_t* end = begin + file.bytes().size();
  auto inside = [&](const void* data, size_t size) {
    const uint8_t* at = static_cast<const uint8_t*>(data);
    return at >= begin && at <= end && size <= static_cast<size_t>(end - at);
  };
  uint64_t sum = 0;
  for (const Metadata& item : file.metadata()) {
    promise(inside(item.key.data(), item.key.size()) && inside(item.data.data(), item.data.size()));
    promise(file.find(item.key) == &item);
    for (uint8_t byte : item.data) sum += byte;
    if (item.type == ValueType::array && item.element == ValueType::string) {
      const uint8_t* at = item.data.data();
      for (uint64_t i = 0; i < item.count; ++i) {
        uint64_t length;
        memcpy(&length, at, sizeof length);
        at += sizeof length + length;
      }
      promise(at == item.data.data() + item.data.size());
    }
  }
  std::vector<float> row;
  for (const Tensor& tensor : file.tensors()) {
    promise(inside(tensor.name.data(), tensor.name.size()) && inside(tensor.data.data(), tensor.data.size()));
    promise(file.tensor(tensor.name) == &tensor);
    promise(tensor.n_dims >= 1 && tensor.n_dims <= 4 && tensor.columns() % tensor.type->block == 0);
    const uint64_t row_bytes = tensor.columns() / tensor.type->block * tensor.type->block_bytes;
    promise(tensor.rows() * row_bytes == tensor.data.size());
    for (uint8_t byte : tensor.data) sum += byte;
    if (tensor.type->decode == nullptr) continue;
    row.resize(tensor.columns());
    for (uint64_t r = 0; r < tensor.rows(); ++r) {
      tensor.type->decode(tensor.data.data() + r * row_bytes, row.data(), row.size());
      sum += tensor.type->finite(tensor.data.data() + r * row_bytes, row.size());
    }
  }
  return sum;
}

}  // namespace ld::test
