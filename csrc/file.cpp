// Both ways of access end in one mapping: of the file itself, or of anonymous memory that the file is read into, so
// that there is one owner, one way to free and page alignment in both cases.
#include "file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "error.h"

namespace ld {
namespace {

std::string reason(int code) { return std::system_category().message(code); }

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

void read_all(int fd, const std::string& path, uint8_t* to, size_t size) {
  constexpr size_t kChunk = size_t{1} << 30;  // one call reads at most 2 GiB
  for (size_t done = 0; done < size;) {
    const ssize_t got = read(fd, to + done, std::min(size - done, kChunk));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(LD_FILE, path + ": cannot be read: " + reason(errno));
    if (got == 0) throw Error(LD_FILE, path + ": became shorter while it was read; is it still being written?");
    done += static_cast<size_t>(got);
  }
}

}  // namespace

FileBytes::FileBytes(const std::string& path, Access access) {
  // O_NONBLOCK: opening a pipe must not wait for its writer. It changes nothing for regular files.
  const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) throw Error(LD_FILE, path + ": cannot be opened: " + reason(errno));
  struct stat status;
  if (fstat(file.fd, &status) != 0) throw Error(LD_FILE, path + ": cannot be examined: " + reason(errno));
  if (S_ISDIR(status.st_mode)) throw Error(LD_FILE, path + ": is a folder; expected a GGUF file");
  if (!S_ISREG(status.st_mode)) throw Error(LD_FILE, path + ": is not a regular file; expected a GGUF file");
  if (status.st_size == 0) throw Error(LD_FILE, path + ": is empty; expected a GGUF file");

  const size_t size = static_cast<size_t>(status.st_size);
  const bool map = access == Access::map;
  void* data = mmap(nullptr, size, map ? PROT_READ : PROT_READ | PROT_WRITE, map ? MAP_PRIVATE : MAP_PRIVATE | MAP_ANON,
                    map ? file.fd : -1, 0);
  if (data == MAP_FAILED) {
    throw Error(LD_MEMORY, path + ": no memory for its " + std::to_string(size) + " bytes: " + reason(errno));
  }
  data_ = static_cast<uint8_t*>(data);
  size_ = size;
  mapped_ = map;
  if (map) return;
  try {
    read_all(file.fd, path, data_, size_);
    mprotect(data_, size_, PROT_READ);  // only a guard against our own mistakes: a failure changes nothing
  } catch (...) {
    munmap(data_, size_);  // the destructor does not run for an unfinished object
    throw;
  }
}

FileBytes::~FileBytes() {
  if (data_ != nullptr) munmap(data_, size_);
}

void FileBytes::forget(std::span<const uint8_t> part) const {
  if (!mapped_ || part.data() < data_ || part.data() >= data_ + size_) return;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = (static_cast<size_t>(part.data() - data_) + page - 1) / page * page;
  const size_t end = static_cast<size_t>(part.data() - data_ + part.size()) / page * page;
  if (begin < end) madvise(data_ + begin, end - begin, MADV_DONTNEED);  // a wish: nothing depends on it
}

FileBytes::FileBytes(FileBytes&& other) noexcept { *this = std::move(other); }

FileBytes& FileBytes::operator=(FileBytes&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

}  // namespace ld
