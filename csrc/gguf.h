// A GGUF file as a validated, immutable description. This is the main attack surface: one pass checks every number of
// the file against the file's size and the limits below before anything is allocated from it, so all later code may
// trust what it reads here. Layout of the format: header, metadata, tensor infos, padding, tensor data.
//
// Limits: 65,536 metadata and tensors each; keys and names 64 KiB of printable UTF-8, no two the same; strings 64 MiB;
// arrays of scalars or strings; alignment 8 to 4,096; 1 to 4 dims whose product is below 2^46; tensors lie side by side
// in the file, without overlaps, with less than one alignment between them and after the last.
//
// A model may be split into parts, NAME-00001-of-00003.gguf and so on: opening the first opens all, as one description.
//
// Not here: the meaning of metadata (arch.cpp), decoding of blocks (quant/), big-endian files and version 1 (refused).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "file.h"
#include "quant/types.h"

namespace ld {

enum class ValueType : int32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

struct Metadata {
  std::string_view key;
  ValueType type;
  ValueType element;              // of an array; equals type otherwise
  uint64_t count;                 // elements of an array, bytes of a string, else 1
  std::span<const uint8_t> data;  // little-endian as in the file; for arrays of strings u64 length + bytes each
};

struct Tensor {
  std::string_view name;
  const TypeTraits* type;  // never null: unknown types are refused
  int n_dims;
  uint64_t dims[4];  // fastest first; dims[0] = columns; unused are 1
  std::span<const uint8_t> data;

  uint64_t columns() const { return dims[0]; }
  uint64_t rows() const { return dims[1] * dims[2] * dims[3]; }
};

class Gguf {
 public:
  using Access = FileBytes::Access;

  // Throws Error(LD_FILE) naming the field and its byte offset, Error(LD_MEMORY) or std::bad_alloc.
  static std::unique_ptr<const Gguf> open(const std::string& path, Access access);
  // The same checks over the bytes of one file that the caller keeps alive (tests, fuzzing).
  static std::unique_ptr<const Gguf> parse(std::span<const uint8_t> bytes);

  Gguf(const Gguf&) = delete;
  Gguf& operator=(const Gguf&) = delete;

  std::span<const Metadata> metadata() const { return metadata_; }
  std::span<const Tensor> tensors() const { return tensors_; }
  const Metadata* find(std::string_view key) const;          // null where absent
  const Tensor* tensor(std::string_view name) const;         // null where absent
  std::span<const uint8_t> bytes() const { return bytes_; }  // of the first file
  void forget(const Tensor& tensor) const;                   // FileBytes::forget

  // Scalars by key, converted between integer widths with a range check. Throw Error(LD_FILE) where the key is absent
  // (the forms without a default) or has another kind of type.
  uint64_t integer(std::string_view key) const;
  uint64_t integer(std::string_view key, uint64_t absent) const;
  double real(std::string_view key) const;
  double real(std::string_view key, double absent) const;
  bool boolean(std::string_view key, bool absent) const;
  std::string_view string(std::string_view key) const;
  std::string_view string(std::string_view key, std::string_view absent) const;

 private:
  class Parser;
  Gguf() = default;
  static std::unique_ptr<Gguf> open_part(const std::string& path, Access access);
  void describe();  // of bytes_; gguf_parser.cpp

  std::vector<FileBytes> files_;  // none after parse(), one for each part after open()
  std::span<const uint8_t> bytes_;
  struct {
    uint64_t number, count, tensors;
  } part_{};
  std::vector<Metadata> metadata_;
  std::vector<Tensor> tensors_;
  std::vector<uint32_t> metadata_order_, tensor_order_;  // sorted by name, for find() and tensor()
};

}  // namespace ld
