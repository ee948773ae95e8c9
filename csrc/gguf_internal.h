// What the parts of the GGUF reader share: loading of numbers, names of types, names in messages, order by name. Private to
// gguf.cpp, gguf_parser.cpp and gguf_shards.cpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "gguf.h"

namespace ld {

constexpr uint64_t kMaxCount = 65536;  // of metadata, of tensors

constexpr struct {
  const char* name;
  uint8_t bytes;  // 0: not a scalar
} kValueTypes[] = {{"u8", 1},   {"i8", 1},     {"u16", 2},   {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
                   {"bool", 1}, {"string", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8}};

inline const char* name_of(ValueType type) { return kValueTypes[static_cast<int>(type)].name; }
inline uint64_t bytes_of(ValueType type) { return kValueTypes[static_cast<int>(type)].bytes; }

template <class T>
T load(const uint8_t* at) {
  T value;
  memcpy(&value, at, sizeof value);
  return value;
}

// A name for a message: at most 64 bytes of it, cut between characters.
std::string shown(std::string_view name);

constexpr auto key_of = [](const Metadata& item) { return item.key; };
constexpr auto name_of_tensor = [](const Tensor& tensor) { return tensor.name; };

// The indices of items in the order of their names. Introsort: n log n also for names chosen to be slow.
template <class Items, class Name>
std::vector<uint32_t> sorted_by(const Items& items, Name name) {
  std::vector<uint32_t> order(items.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    const int order_of_names = name(items[a]).compare(name(items[b]));
    return order_of_names != 0 ? order_of_names < 0 : a < b;
  });
  return order;
}

// Where in such an order the second of two items of one name stands, 0 where there are none.
template <class Items, class Name>
size_t find_repeated(const Items& items, const std::vector<uint32_t>& order, Name name) {
  for (size_t i = 1; i < order.size(); ++i)
    if (name(items[order[i]]) == name(items[order[i - 1]])) return i;
  return 0;
}

}  // namespace ld
