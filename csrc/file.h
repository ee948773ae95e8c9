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

  // Gives back the memory of a part that will hardly be read again: reading it again reads the file. Nothing happens
  // where the bytes were read into memory, which is then their only place, or belong to another file.
  void forget(std::span<const uint8_t> part) const;

 private:
  uint8_t* data_ = nullptr;  // from mmap, of the file or of anonymous memory
  size_t size_ = 0;
  bool mapped_ = false;  // data_ is the file itself
};

}  // namespace ld
