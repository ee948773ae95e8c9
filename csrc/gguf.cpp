// Look-ups by name and the typed getters: what the rest of the engine asks of a file once it is known to be good.
#include "gguf.h"

#include <cmath>

#include "error.h"
#include "gguf_internal.h"

namespace ld {
namespace {

template <class Items, class Name>
auto* look_up(const Items& items, const std::vector<uint32_t>& order, std::string_view wanted, Name name) {
  const auto at = std::lower_bound(order.begin(), order.end(), wanted,
                                   [&](uint32_t index, std::string_view key) { return name(items[index]) < key; });
  return at != order.end() && name(items[*at]) == wanted ? &items[*at] : nullptr;
}

}  // namespace

std::string shown(std::string_view name) {
  constexpr size_t kShown = 64;
  size_t cut = std::min(name.size(), kShown);
  while (cut < name.size() && (name[cut] & 0xc0) == 0x80) --cut;
  return text("'%.*s%s'", static_cast<int>(cut), name.data(), cut < name.size() ? "..." : "");
}

std::unique_ptr<const Gguf> Gguf::parse(std::span<const uint8_t> bytes) {
  std::unique_ptr<Gguf> file(new Gguf);
  file->bytes_ = bytes;
  file->describe();
  return file;
}

void Gguf::forget(const Tensor& tensor) const {
  for (const FileBytes& file : files_) file.forget(tensor.data);
}

const Metadata* Gguf::find(std::string_view key) const { return look_up(metadata_, metadata_order_, key, key_of); }

const Tensor* Gguf::tensor(std::string_view name) const {
  return look_up(tensors_, tensor_order_, name, name_of_tensor);
}

namespace {

[[noreturn]] void refuse(const Metadata& item, const std::string& found, const char* expected) {
  throw Error(LD_FILE, "metadata " + shown(item.key) + " is " + found + ", expected " + expected);
}

[[noreturn]] void refuse_type(const Metadata& item, const char* expected) {
  refuse(item, std::string("of type ") + name_of(item.type), expected);
}

uint64_t integer_of(const Metadata& item) {
  const uint8_t* at = item.data.data();
  int64_t value = 0;
  switch (item.type) {
    case ValueType::u8:
      return load<uint8_t>(at);
    case ValueType::u16:
      return load<uint16_t>(at);
    case ValueType::u32:
      return load<uint32_t>(at);
    case ValueType::u64:
      return load<uint64_t>(at);
    case ValueType::i8:
      value = load<int8_t>(at);
      break;
    case ValueType::i16:
      value = load<int16_t>(at);
      break;
    case ValueType::i32:
      value = load<int32_t>(at);
      break;
    case ValueType::i64:
      value = load<int64_t>(at);
      break;
    default:
      refuse_type(item, "an integer");
  }
  if (value < 0) refuse(item, std::to_string(value), "0 or more");
  return static_cast<uint64_t>(value);
}

double real_of(const Metadata& item) {
  if (item.type != ValueType::f32 && item.type != ValueType::f64) refuse_type(item, "f32 or f64");
  const bool is_float = item.type == ValueType::f32;
  const double value = is_float ? load<float>(item.data.data()) : load<double>(item.data.data());
  if (!std::isfinite(value)) refuse(item, "not finite", "a number");
  return value;
}

bool boolean_of(const Metadata& item) {
  if (item.type != ValueType::boolean) refuse_type(item, "bool");
  return item.data[0] != 0;
}

std::string_view string_of(const Metadata& item) {
  if (item.type != ValueType::string) refuse_type(item, "string");
  return {reinterpret_cast<const char*>(item.data.data()), item.data.size()};
}

const Metadata& require(const Gguf& file, std::string_view key) {
  const Metadata* item = file.find(key);
  if (item == nullptr) throw Error(LD_FILE, "metadata " + shown(key) + " is missing; the model needs it");
  return *item;
}

template <class T>
T value_or(const Gguf& file, std::string_view key, T absent, T (*value)(const Metadata&)) {
  const Metadata* item = file.find(key);
  return item != nullptr ? value(*item) : absent;
}

}  // namespace

uint64_t Gguf::integer(std::string_view key) const { return integer_of(require(*this, key)); }
uint64_t Gguf::integer(std::string_view key, uint64_t absent) const { return value_or(*this, key, absent, integer_of); }
double Gguf::real(std::string_view key) const { return real_of(require(*this, key)); }
double Gguf::real(std::string_view key, double absent) const { return value_or(*this, key, absent, real_of); }
bool Gguf::boolean(std::string_view key, bool absent) const { return value_or(*this, key, absent, boolean_of); }
std::string_view Gguf::string(std::string_view key) const { return string_of(require(*this, key)); }
std::string_view Gguf::string(std::string_view key, std::string_view absent) const {
  return value_or(*this, key, absent, string_of);
}

}  // namespace ld
