// The bytes of a file, mapped or read into memory, with an owner. A mapping starts at once and is shared between
// processes, but must not shrink while it is in use: no library can survive that. Not here: what the bytes mean,
// writing.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace ld {

class FileBytes {
 public:
  enum class Access { map, read };

  FileBytes() = default;
  // Throws Error(LD_FILE) where path is missing, not a regular file, empty or unreadable, Error(LD_MEMORY).
  FileBytes(const std::string& path, Access access);
  ~FileBytes();
  FileBytes(FileBytes&& other) noexcept;
  FileBytes& operator=(FileBytes&& other) noexcept;

  std::span<const uint8_t> bytes() const { return {data_, size_}; }  // starts on a page

 private:
  uint8_t* data_ = nullptr;  // from mmap, of the file or of anonymous memory
  size_t size_ = 0;
};

}  // namespace ld
