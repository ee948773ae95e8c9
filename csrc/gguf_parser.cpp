// Parser walks the bytes of one file once, front to back, through take(), which never leaves them; counts are compared
// with the bytes that are left before they are used. Names are sorted once, for duplicates and for look-ups; extents are
// sorted once, for overlaps. The work is O(bytes of the description * log of the counts).
//
// Errors look like "tensor 3 'blk.0.attn_q.weight': dims[1] at byte 1234 is 0, expected 1 or more".
#include <bit>
#include <cinttypes>

#include "error.h"
#include "gguf_internal.h"

namespace ld {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are copied from the file as they are");
static_assert(sizeof(size_t) == 8, "sizes of files and tensors need 64 bits");

constexpr uint64_t kMaxName = 64 << 10;               // bytes of a key or a tensor's name
constexpr uint64_t kMaxString = 64 << 20;             // bytes of a string value
constexpr uint64_t kMaxElements = uint64_t{1} << 46;  // values of a tensor, exclusive
constexpr uint32_t kMaxDims = 4;
constexpr uint64_t kDefaultAlignment = 32, kMinAlignment = 8, kMaxAlignment = 4096;
constexpr uint64_t kMinMetadata = 8 + 1 + 4 + 1;        // bytes: length, key, type, value
constexpr uint64_t kMinTensor = 8 + 1 + 4 + 8 + 4 + 8;  // length, name, n_dims, one dim, type, offset

// The length of the UTF-8 sequence at the start of text, 0 where it is invalid (overlong forms and surrogates included)
// or a control character.
size_t printable(std::span<const uint8_t> text) {
  const uint8_t first = text[0];
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
  if (first < 0xc2 || first > 0xf4) return 0;
  const size_t length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  if (text.size() < length) return 0;
  uint32_t code = first & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((text[i] & 0xc0) != 0x80) return 0;
    code = code << 6 | (text[i] & 0x3f);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0xa0, 0x800, 0x10000};  // from U+0080 to U+009F are control characters
  if (code < kLeast[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return 0;
  return length;
}

}  // namespace

class Gguf::Parser {
 public:
  explicit Parser(Gguf& out) : out_(out), bytes_(out.bytes_) {}

  void run() {
    read_header();
    read_metadata();
    read_alignment();
    read_tensors();
    place_tensors();
  }

 private:
  // What is being read, for messages: item index_ of kind_, with its name once that is known to be printable.
  struct Place {
    const char* kind;
    uint64_t index;
    std::string_view name;
  };

  [[noreturn]] void fail(const char* field, uint64_t at, const std::string& problem) const {
    std::string message;
    if (place_.kind != nullptr) {
      message = std::string(place_.kind) + " " + std::to_string(place_.index);
      if (!place_.name.empty()) message += " " + shown(place_.name);
      message += ": ";
    }
    throw Error(LD_FILE, message + field + " at byte " + std::to_string(at) + " " + problem);
  }

  [[noreturn]] void fail(const char* field, uint64_t at, uint64_t found, const std::string& expected) const {
    fail(field, at, "is " + std::to_string(found) + ", expected " + expected);
  }

  uint64_t left() const { return bytes_.size() - position_; }

  std::span<const uint8_t> take(const char* field, uint64_t count) {
    if (count > left()) {
      fail(field, position_,
           text("needs %" PRIu64 " bytes, but only %" PRIu64 " are left; is the file complete?", count, left()));
    }
    const auto part = bytes_.subspan(position_, count);
    position_ += count;
    return part;
  }

  template <class T>
  T number(const char* field) {
    return load<T>(take(field, sizeof(T)).data());
  }

  // A count of items of at least `least` bytes each, which must fit into the bytes that are left.
  uint64_t count(const char* field, uint64_t limit, uint64_t least) {
    const uint64_t at = position_, found = number<uint64_t>(field);
    if (found > limit) fail(field, at, found, "at most " + std::to_string(limit));
    if (found > left() / least) {
      fail(field, at,
           text("is %" PRIu64 ", but only %" PRIu64 " bytes are left; is the file complete?", found, left()));
    }
    return found;
  }

  std::string_view name(const char* field) {
    const uint64_t at = position_, length = number<uint64_t>(field);
    if (length == 0 || length > kMaxName)
      fail(field, at, "has " + std::to_string(length) + " bytes, expected 1 to 65536");
    const auto bytes = take(field, length);
    for (size_t i = 0; i < length;) {
      const size_t step = printable(bytes.subspan(i));
      if (step == 0) fail(field, at + 8 + i, text("holds the byte 0x%02x, expected printable UTF-8", bytes[i]));
      i += step;
    }
    return {reinterpret_cast<const char*>(bytes.data()), length};
  }

  void read_header() {
    const auto magic = bytes_.first(std::min<size_t>(4, bytes_.size()));
    if (!std::ranges::equal(magic, std::string_view("GGUF"))) {
      std::string hex, readable;
      for (uint8_t byte : magic) {
        hex += text(hex.empty() ? "%02x" : " %02x", byte);
        readable += byte >= 0x20 && byte < 0x7f ? static_cast<char>(byte) : '.';
      }
      throw Error(LD_FILE, "not a GGUF file: it begins with the bytes " + hex + " ('" + readable +
                               "'), expected 47 47 55 46 ('GGUF')");
    }
    position_ = 4;
    const uint32_t version = number<uint32_t>("version");
    if (version == 1) {
      fail("version", 4, "is 1, expected 2 or 3; write the file again with a current converter");
    }
    if (version != 0 && version % 65536 == 0) {
      fail("version", 4, "is big-endian; only little-endian files are supported");
    }
    if (version != 2 && version != 3) fail("version", 4, version, "2 or 3");
    // Tensors come first in the header; their infos are at least kMinTensor long, so this bound is safe for both.
    n_tensors_ = count("n_tensors", kMaxCount, kMinTensor);
    n_metadata_ = count("n_kv", kMaxCount, kMinMetadata);
  }

  ValueType value_type(const char* field) {
    const uint64_t at = position_, found = number<uint32_t>(field);
    if (found >= std::size(kValueTypes)) fail(field, at, found, "0 to 12");
    return static_cast<ValueType>(found);
  }

  // Checks the length and the extent of a string value; returns its bytes.
  std::span<const uint8_t> string_value(const char* field) {
    const uint64_t at = position_, length = number<uint64_t>(field);
    if (length > kMaxString) fail(field, at, "has " + std::to_string(length) + " bytes, expected at most 67108864");
    return take(field, length);
  }

  std::span<const uint8_t> scalars(const char* field, ValueType type, uint64_t number_of) {
    const uint64_t at = position_;
    const auto data = take(field, number_of * bytes_of(type));  // cannot overflow: count() compared it with left()
    if (type == ValueType::boolean) {
      const auto bad = std::ranges::find_if(data, [](uint8_t value) { return value > 1; });
      if (bad != data.end()) fail(field, at + (bad - data.begin()), *bad, "0 or 1");
    }
    return data;
  }

  void read_metadata() {
    out_.metadata_.reserve(n_metadata_);
    for (uint64_t i = 0; i < n_metadata_; ++i) {
      place_ = {"metadata", i, {}};
      Metadata item;
      item.key = place_.name = name("key");
      item.type = item.element = value_type("type");
      item.count = 1;
      if (item.type == ValueType::string) {
        item.data = string_value("string");
        item.count = item.data.size();
      } else if (item.type == ValueType::array) {
        const uint64_t at = position_;
        item.element = value_type("element type");
        if (item.element == ValueType::array) {
          fail("element type", at, "is 9 (array), expected scalars or strings; arrays of arrays are not supported");
        }
        const bool strings = item.element == ValueType::string;
        item.count = count("array length", UINT64_MAX, strings ? 8 : bytes_of(item.element));
        if (strings) {
          const uint64_t start = position_;
          for (uint64_t n = 0; n < item.count; ++n) string_value("string in the array");
          item.data = bytes_.subspan(start, position_ - start);
        } else {
          item.data = scalars("array", item.element, item.count);
        }
      } else {
        item.data = scalars("value", item.type, 1);
      }
      out_.metadata_.push_back(item);
    }
    out_.metadata_order_ = sorted_by(out_.metadata_, key_of);
    refuse_repeated(out_.metadata_, out_.metadata_order_, "metadata", "key", key_of);
  }

  template <class Items, class Name>
  void refuse_repeated(const Items& items, const std::vector<uint32_t>& order, const char* kind, const char* field,
                       Name name_of_item) {
    const size_t i = find_repeated(items, order, name_of_item);
    if (i == 0) return;
    const std::string_view name = name_of_item(items[order[i]]);
    place_ = {kind, order[i], name};
    fail(field, offset_of(name.data()), text("is the same as that of %s %u", kind, order[i - 1]));
  }

  uint64_t offset_of(const void* inside) const { return static_cast<const uint8_t*>(inside) - bytes_.data(); }

  void read_alignment() {
    alignment_ = kDefaultAlignment;
    const Metadata* item = out_.find("general.alignment");
    if (item == nullptr) return;
    place_ = {"metadata", static_cast<uint64_t>(item - out_.metadata_.data()), item->key};
    const uint64_t at = offset_of(item->data.data());
    if (item->type != ValueType::u32)
      fail("value", at, std::string("is of type ") + name_of(item->type) + ", expected u32");
    alignment_ = load<uint32_t>(item->data.data());
    if (!std::has_single_bit(alignment_) || alignment_ < kMinAlignment || alignment_ > kMaxAlignment) {
      fail("value", at, alignment_, "a power of two from 8 to 4096");
    }
  }

  void read_tensors() {
    if (n_tensors_ > left() / kMinTensor) {
      place_ = {};
      fail("n_tensors", 8,
           text("is %" PRIu64 ", but only %" PRIu64 " bytes follow the metadata; is the file complete?", n_tensors_,
                left()));
    }
    out_.tensors_.reserve(n_tensors_);
    extents_.reserve(n_tensors_);
    for (uint64_t i = 0; i < n_tensors_; ++i) {
      place_ = {"tensor", i, {}};
      Tensor tensor;
      tensor.name = place_.name = name("name");
      const uint64_t at_dims = position_, n_dims = number<uint32_t>("n_dims");
      if (n_dims < 1 || n_dims > kMaxDims) fail("n_dims", at_dims, n_dims, "1 to 4");
      tensor.n_dims = static_cast<int>(n_dims);
      const uint64_t elements = read_dims(tensor);

      const uint64_t at_type = position_;
      const int32_t type = number<int32_t>("type");
      tensor.type = type_traits(type);
      if (tensor.type == nullptr) {
        fail("type", at_type, text("is %d, which is not a type of GGUF tensors that localdiff knows", type));
      }
      if (tensor.dims[0] % tensor.type->block != 0) {
        fail("dims[0]", at_dims + 4,
             text("is %" PRIu64 ", expected a multiple of %u, the block of type %s", tensor.dims[0], tensor.type->block,
                  tensor.type->name));
      }
      const uint64_t at = position_, offset = number<uint64_t>("offset");
      if (offset % alignment_ != 0)
        fail("offset", at, offset, "a multiple of the alignment " + std::to_string(alignment_));
      // Below 2^46 * 8 bytes: no type spends more than 8 bytes on a value.
      extents_.push_back({offset, elements / tensor.type->block * tensor.type->block_bytes, at});
      out_.tensors_.push_back(tensor);
    }
    out_.tensor_order_ = sorted_by(out_.tensors_, name_of_tensor);
    refuse_repeated(out_.tensors_, out_.tensor_order_, "tensor", "name", name_of_tensor);
  }

  uint64_t read_dims(Tensor& tensor) {
    static constexpr const char* kFields[kMaxDims] = {"dims[0]", "dims[1]", "dims[2]", "dims[3]"};
    uint64_t elements = 1;
    for (uint32_t d = 0; d < kMaxDims; ++d) {
      tensor.dims[d] = 1;
      if (d >= static_cast<uint32_t>(tensor.n_dims)) continue;
      const uint64_t at = position_, found = number<uint64_t>(kFields[d]);
      if (found == 0) fail(kFields[d], at, "is 0, expected 1 or more");
      if (found > (kMaxElements - 1) / elements) {
        fail(kFields[d], at, text("is %" PRIu64 ", which makes 2^46 values or more", found));
      }
      tensor.dims[d] = found;
      elements *= found;
    }
    return elements;
  }

  // Gives every tensor its bytes. Going through them in the order of their offsets, each must begin after the one
  // before, and what is left between them must be padding: bytes that no part of the file accounts for mean that a
  // number is wrong.
  void place_tensors() {
    place_ = {};
    const uint64_t padding = (alignment_ - position_ % alignment_) % alignment_;
    if (n_tensors_ == 0 && left() <= padding) return;  // files of vocabularies may end without it
    const auto zeros = take("padding before the tensor data", padding);
    if (!std::ranges::all_of(zeros, [](uint8_t byte) { return byte == 0; })) {
      fail("padding before the tensor data", offset_of(zeros.data()), "is not all zero; is n_tensors too small?");
    }
    const auto data = bytes_.subspan(position_);
    std::vector<uint32_t> order(extents_.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      return extents_[a].offset != extents_[b].offset ? extents_[a].offset < extents_[b].offset : a < b;
    });
    uint64_t end = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      const Extent& extent = extents_[order[i]];
      Tensor& tensor = out_.tensors_[order[i]];
      place_ = {"tensor", order[i], tensor.name};
      if (extent.offset < end) {
        fail("offset", extent.at, text("is %" PRIu64 ", which lies inside tensor %u", extent.offset, order[i - 1]));
      }
      if (extent.offset - end >= alignment_) {
        fail("offset", extent.at,
             text("is %" PRIu64 ", which leaves %" PRIu64 " bytes before it that belong to no tensor", extent.offset,
                  extent.offset - end));
      }
      if (extent.offset > data.size() || extent.bytes > data.size() - extent.offset) {
        fail("offset", extent.at,
             text("is %" PRIu64 ", and the tensor's %" PRIu64 " bytes would end beyond the file, which has %" PRIu64
                  " bytes of tensor data; is the file complete?",
                  extent.offset, extent.bytes, static_cast<uint64_t>(data.size())));
      }
      tensor.data = data.subspan(extent.offset, extent.bytes);
      end = extent.offset + extent.bytes;
    }
    place_ = {};
    if (data.size() - end >= alignment_) {
      fail("the end of the tensor data", position_ + end,
           text("is followed by %" PRIu64 " bytes that belong to no tensor", static_cast<uint64_t>(data.size() - end)));
    }
  }

  struct Extent {
    uint64_t offset, bytes;  // within the tensor data
    uint64_t at;             // where the file states the offset
  };

  Gguf& out_;
  const std::span<const uint8_t> bytes_;
  uint64_t position_ = 0;
  uint64_t n_metadata_ = 0, n_tensors_ = 0, alignment_ = 0;
  std::vector<Extent> extents_;
  Place place_{};
};

void Gguf::describe() { Parser(*this).run(); }

}  // namespace ld
