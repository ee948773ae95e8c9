// Changes of GGUF files that know the layout, shared by the fuzzers. Plain byte mutation hardly gets past the counts and
// lengths of this format, so most changes set one number to a number at which arithmetic turns, copy, drop, swap or add
// metadata and tensors, and then usually repair counts, offsets, padding and data so that the rest is reached.
#pragma once

#include <algorithm>
#include <random>

#include "../cpp/gguf_bytes.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace ld::test {

using Bytes = std::vector<uint8_t>;

constexpr size_t kHeader = 24;

struct Range {
  size_t begin, end;
};

struct Number {
  size_t at, size;
};

struct TensorSpots {
  size_t dims, type, offset;  // where they are
  uint32_t n_dims;
};

template <class T>
T get_number(const uint8_t* at) {
  T value;
  memcpy(&value, at, sizeof value);
  return value;
}

template <class T>
T get(const Bytes& bytes, size_t at) {
  return get_number<T>(bytes.data() + at);
}

template <class T>
void set(Bytes& bytes, size_t at, T value) {
  memcpy(bytes.data() + at, &value, sizeof value);
}

// Where things are, as far as the bytes make sense. Knows nothing of the reader's limits.
class Layout {
 public:
  std::vector<Range> metadata, tensors;
  std::vector<TensorSpots> spots;  // of tensors
  std::vector<Number> numbers;
  std::vector<size_t> element_types;
  size_t end = kHeader;
  uint64_t alignment = 32;

  explicit Layout(const Bytes& bytes) : bytes_(bytes) {
    if (bytes.size() < kHeader) return;
    numbers = {{4, 4}, {8, 8}, {16, 8}};
    const uint64_t n_tensors = get<uint64_t>(bytes, 8), n_metadata = get<uint64_t>(bytes, 16);
    at_ = kHeader;
    for (uint64_t i = 0; i < n_metadata && read_metadata(); ++i) metadata.push_back({end, at_}), end = at_;
    at_ = end;
    for (uint64_t i = 0; i < n_tensors && read_tensor(); ++i) tensors.push_back({end, at_}), end = at_;
  }

 private:
  bool skip(uint64_t count) {
    if (count > bytes_.size() - at_) return false;
    at_ += count;
    return true;
  }

  template <class T>
  bool number(T& value) {
    if (!skip(sizeof value)) return false;
    value = get<T>(bytes_, at_ - sizeof value);
    numbers.push_back({at_ - sizeof value, sizeof value});
    return true;
  }

  bool string() {
    uint64_t length;
    return number(length) && skip(length);
  }

  static uint64_t size_of(uint32_t type) {
    constexpr uint8_t kSizes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < 13 ? kSizes[type] : 0;
  }

  bool read_metadata() {
    const size_t key = at_ + 8;
    uint32_t type, element;
    uint64_t count;
    if (!string()) return false;
    const std::string_view name(reinterpret_cast<const char*>(bytes_.data()) + key, at_ - key);
    if (!number(type)) return false;
    if (type == 8) return string();
    if (type != 9) {
      if (name == "general.alignment" && at_ + 4 <= bytes_.size()) alignment = get<uint32_t>(bytes_, at_);
      if (at_ + 4 <= bytes_.size()) numbers.push_back({at_, 4});
      return size_of(type) != 0 && skip(size_of(type));
    }
    if (!number(element) || !number(count)) return false;
    if (element != 8) return size_of(element) != 0 && count <= bytes_.size() && skip(count * size_of(element));
    for (uint64_t i = 0; i < count; ++i) {
      if (!string()) return false;
    }
    return true;
  }

  bool read_tensor() {
    TensorSpots spot;
    uint32_t type;
    uint64_t value;
    if (!string() || !number(spot.n_dims) || spot.n_dims > 4) return false;
    spot.dims = at_;
    for (uint32_t d = 0; d < spot.n_dims; ++d) {
      if (!number(value)) return false;
    }
    spot.type = at_;
    if (!number(type)) return false;
    spot.offset = at_;
    if (!number(value)) return false;
    spots.push_back(spot);
    return true;
  }

  const Bytes& bytes_;
  size_t at_ = 0;
};

class Mutator {
 public:
  Mutator(Bytes& bytes, size_t max_size, uint32_t seed) : bytes_(bytes), max_size_(max_size), random_(seed) {}

  void run() {
    const Layout layout(bytes_);
    if (bytes_.size() < kHeader || chance(10)) {
      any_bytes();
    } else {
      switch (below(8)) {
        case 0:
        case 1:
        case 2:
          change_number(layout);
          break;
        case 3:
          change_items(
              layout.metadata, 16, [&] { return new_metadata(); }, layout.end);
          break;
        case 4:
          change_items(
              layout.tensors, 8, [&] { return new_tensor(); }, layout.end);
          break;
        case 5:
          change_shape(layout);
          break;
        case 6:
          change_text(layout);
          break;
        default:
          any_bytes();
          break;
      }
    }
    if (!chance(25)) repair();
    if (bytes_.size() > max_size_) bytes_.resize(max_size_);
  }

 private:
  uint64_t below(uint64_t count) { return count == 0 ? 0 : random_() % count; }
  bool chance(unsigned percent) { return below(100) < percent; }

  void any_bytes() {
    const size_t size = bytes_.size();
    bytes_.resize(std::max(max_size_, size));
    bytes_.resize(LLVMFuzzerMutate(bytes_.data(), size, max_size_));
  }

  uint64_t turning_point(uint64_t old) {
    static constexpr uint64_t kPoints[] = {0,
                                           1,
                                           2,
                                           3,
                                           4,
                                           5,
                                           7,
                                           8,
                                           9,
                                           12,
                                           13,
                                           16,
                                           31,
                                           32,
                                           33,
                                           64,
                                           255,
                                           256,
                                           4096,
                                           8192,
                                           65535,
                                           65536,
                                           65537,
                                           1u << 26,
                                           (1u << 26) + 1,
                                           0x7fffffff,
                                           0x80000000,
                                           0xffffffff,
                                           uint64_t{1} << 32,
                                           uint64_t{1} << 45,
                                           uint64_t{1} << 46,
                                           (uint64_t{1} << 46) - 1,
                                           uint64_t{1} << 61,
                                           uint64_t{1} << 62,
                                           (uint64_t{1} << 62) + 1,
                                           uint64_t{1} << 63,
                                           (uint64_t{1} << 63) - 1,
                                           UINT64_MAX,
                                           UINT64_MAX - 7,
                                           UINT64_MAX - 31,
                                           UINT64_MAX / 4 + 2};
    switch (below(6)) {
      case 0:
        return old + 1;
      case 1:
        return old - 1;
      case 2:
        return old ^ uint64_t { 1 } << below(64);
      case 3:
        return old * 2;
      case 4:
        return below(bytes_.size() + 40);
      default:
        return kPoints[below(std::size(kPoints))];
    }
  }

  void change_number(const Layout& layout) {
    if (layout.numbers.empty()) return;
    const Number number = layout.numbers[below(layout.numbers.size())];
    uint64_t value = 0;
    memcpy(&value, bytes_.data() + number.at, number.size);
    value = turning_point(value);
    memcpy(bytes_.data() + number.at, &value, number.size);
  }

  void insert(size_t at, const Bytes& item) {
    bytes_.insert(bytes_.begin() + static_cast<ptrdiff_t>(at), item.begin(), item.end());
  }

  Bytes cut(Range range) {
    const auto begin = bytes_.begin() + static_cast<ptrdiff_t>(range.begin);
    const auto end = bytes_.begin() + static_cast<ptrdiff_t>(range.end);
    const Bytes item(begin, end);
    bytes_.erase(begin, end);
    return item;
  }

  // Copies, drops, moves or adds an item; the count at `count` usually follows.
  template <class New>
  void change_items(const std::vector<Range>& items, size_t count, New create, size_t end) {
    const size_t place = items.empty() ? std::min(end, bytes_.size()) : items[below(items.size())].begin;
    int64_t more = 0;
    switch (items.empty() ? 0 : below(4)) {
      case 0:
        insert(place, create()), more = 1;
        break;
      case 1: {
        const Range range = items[below(items.size())];
        const Bytes copy(bytes_.begin() + static_cast<ptrdiff_t>(range.begin),
                         bytes_.begin() + static_cast<ptrdiff_t>(range.end));
        insert(place, copy), more = 1;
        break;
      }
      case 2:
        cut(items[below(items.size())]), more = -1;
        break;
      default: {
        const Bytes moved = cut(items.back());
        insert(std::min(place, items.back().begin), moved);
      }
    }
    if (!chance(10)) set(bytes_, count, get<uint64_t>(bytes_, count) + static_cast<uint64_t>(more));
  }

  // Half-way plausible: known names, characters of every length in UTF-8, sometimes one byte of them wrong.
  std::string new_name() {
    static constexpr const char* kNames[] = {"general.alignment",
                                             "general.architecture",
                                             "output.weight",
                                             "a",
                                             "\xc3\xa9",
                                             "\xe2\x96\x81",
                                             "\xf0\x90\x80\x80",
                                             "\xed\x9f\xbf",
                                             "split.no",
                                             "split.count",
                                             "split.tensors.count",
                                             "general.type",
                                             "adapter.type",
                                             "adapter.lora.alpha",
                                             ".lora_a",
                                             ".lora_b"};
    std::string name =
        chance(60) ? kNames[below(std::size(kNames))] : std::string(below(80), static_cast<char>(' ' + below(95)));
    if (chance(20)) name += kNames[below(std::size(kNames))];
    if (!name.empty() && chance(10)) name[below(name.size())] ^= static_cast<char>(1 << below(8));
    return name;
  }

  static Bytes body(const Builder& builder) { return {builder.bytes.begin() + kHeader, builder.bytes.end()}; }

  Bytes new_metadata() {
    Builder builder(0, 0);
    const std::string name = new_name();
    const auto type = static_cast<ValueType>(below(13));
    if (type == ValueType::string) {
      builder.text(name, new_name());
    } else if (type == ValueType::array && chance(50)) {
      builder.texts(name, std::vector<std::string>(below(4), new_name()));
    } else if (type == ValueType::array) {
      const uint64_t count = below(9);
      builder.array(name, static_cast<ValueType>(below(13)), count);
      builder.raw("value", std::string(count * (1 << below(4)), static_cast<char>(below(3))), Part::content);
    } else if (name == "general.alignment") {
      builder.scalar<uint32_t>(name, ValueType::u32, 1u << below(14));
    } else {
      constexpr uint8_t kSizes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
      builder.key(name, type);
      builder.raw("value", std::string(kSizes[static_cast<int>(type)], static_cast<char>(random_())), Part::content);
    }
    return body(builder);
  }

  Bytes new_tensor() {
    Builder builder(0, 0);
    builder.tensor(new_name(), static_cast<int32_t>(below(43)), {32 * (1 + below(8)), 1 + below(3)}, below(64) * 32);
    return body(builder);
  }

  // Another type or other dims that fit, so that accepted files with all types are reached.
  void change_shape(const Layout& layout) {
    if (layout.spots.empty()) return;
    const TensorSpots& spot = layout.spots[below(layout.spots.size())];
    const int32_t type = chance(50) ? static_cast<int32_t>(below(43)) : get<int32_t>(bytes_, spot.type);
    set(bytes_, spot.type, type);
    const TypeTraits* row = type_traits(type);
    for (uint32_t d = 0; d < spot.n_dims; ++d) {
      set<uint64_t>(bytes_, spot.dims + 8 * d, d == 0 && row != nullptr ? row->block * (1 + below(3)) : 1 + below(4));
    }
  }

  void change_text(const Layout& layout) {
    const bool of_tensor = chance(30);
    const std::vector<Range>& items = of_tensor ? layout.tensors : layout.metadata;
    if (items.empty()) return;
    const Range range = items[below(items.size())];
    const uint64_t old = get<uint64_t>(bytes_, range.begin);
    const std::string name = new_name();
    cut({range.begin, range.begin + 8 + old});
    Builder builder(0, 0);
    builder.string("name", name, Part::name);
    insert(range.begin, body(builder));
  }

  // Makes counts, offsets, padding and the length of the data agree with the items that are there.
  void repair() {
    const Layout layout(bytes_);
    if (bytes_.size() < kHeader) return;
    if (chance(80)) {
      set<uint64_t>(bytes_, 8, layout.tensors.size());
      set<uint64_t>(bytes_, 16, layout.metadata.size());
    }
    const uint64_t alignment = layout.alignment == 0 || layout.alignment > max_size_ ? 32 : layout.alignment;
    auto up = [&](uint64_t value) { return (value + alignment - 1) / alignment * alignment; };
    uint64_t size = 0;
    for (const TensorSpots& spot : layout.spots) {
      set(bytes_, spot.offset, up(size));
      const TypeTraits* row = type_traits(get<int32_t>(bytes_, spot.type));
      uint64_t elements = 1;
      for (uint32_t d = 0; d < spot.n_dims; ++d)
        elements *= std::min(get<uint64_t>(bytes_, spot.dims + 8 * d), max_size_);
      if (row != nullptr) size = up(size) + elements / row->block * row->block_bytes;
      if (elements > max_size_ || size > max_size_) return;
    }
    bytes_.resize(layout.end);
    bytes_.resize(up(layout.end), 0);
    bytes_.resize(bytes_.size() + size, 0x31);
  }

  Bytes& bytes_;
  const uint64_t max_size_;
  std::minstd_rand random_;
};

}  // namespace ld::test
