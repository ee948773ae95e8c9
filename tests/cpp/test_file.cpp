// Opening files by path, mapped and read: the same description either way, and one clear sentence for each kind of path
// that is no usable file.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "error.h"
#include "gguf_bytes.h"
#include "test.h"

using namespace ld;
using namespace ld::test;

namespace {

// A folder that disappears with everything in it.
class Folder {
 public:
  Folder() {
    char name[] = "/tmp/localdiff-test-XXXXXX";
    if (mkdtemp(name) == nullptr) abort();
    path_ = name;
  }
  ~Folder() {
    for (const std::string& each : made_) remove(each.c_str());
    rmdir(path_.c_str());
  }

  std::string path(const char* name) {
    made_.push_back(path_ + "/" + name);
    return made_.back();
  }

  std::string write(const char* name, const void* data, size_t size) {
    const std::string to = path(name);
    FILE* file = fopen(to.c_str(), "wb");
    if (file == nullptr || fwrite(data, 1, size, file) != size || fclose(file) != 0) abort();
    return to;
  }

 private:
  std::string path_;
  std::vector<std::string> made_;
};

constexpr Gguf::Access kBoth[] = {Gguf::Access::map, Gguf::Access::read};

void refused(const std::string& path, ld_status status, const std::string& part) {
  for (Gguf::Access access : kBoth) {
    try {
      Gguf::open(path, access);
      fail(path.c_str(), 0, "is accepted");
    } catch (const Error& error) {
      CHECK_EQ(error.status(), status);
      const std::string expected = path + ": " + part;
      if (std::string(error.what()).find(expected) != 0) {
        fail(path.c_str(), 0, "says \"" + std::string(error.what()) + "\", expected \"" + expected + "\"");
      }
    }
  }
}

}  // namespace

TEST(both_ways_of_access) {
  Folder folder;
  const Builder built = small_model();
  const std::string path = folder.write("model.gguf", built.bytes.data(), built.bytes.size());
  for (Gguf::Access access : kBoth) {
    const auto file = Gguf::open(path, access);
    REQUIRE(file->bytes().size() == built.bytes.size());
    CHECK(memcmp(file->bytes().data(), built.bytes.data(), built.bytes.size()) == 0);
    CHECK(use_everything(*file) == use_everything(*Gguf::parse(built.bytes)));
    CHECK_EQ(reinterpret_cast<uintptr_t>(file->bytes().data()) % 4096, 0u);
  }
  // What was read stays although the file changes; no descriptor is left open.
  const auto kept = Gguf::open(path, Gguf::Access::read);
  CHECK(truncate(path.c_str(), 0) == 0);
  use_everything(*kept);
  const int next = open("/dev/null", O_RDONLY);
  close(next);
  for (int i = 0; i < 100; ++i) {
    CHECK_THROWS(Gguf::open(path, Gguf::Access::read), "is empty");
  }
  const int later = open("/dev/null", O_RDONLY);
  close(later);
  CHECK_EQ(next, later);
}

TEST(paths_that_are_no_model) {
  Folder folder;
  refused(folder.path("missing.gguf"), LD_FILE, "cannot be opened: No such file or directory");
  refused("", LD_FILE, "cannot be opened: No such file or directory");
  refused("/tmp", LD_FILE, "is a folder; expected a GGUF file");
  refused("/dev/null", LD_FILE, "is not a regular file; expected a GGUF file");
  const std::string pipe = folder.path("pipe");
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  refused(pipe, LD_FILE, "is not a regular file; expected a GGUF file");
  refused(folder.write("empty.gguf", "", 0), LD_FILE, "is empty; expected a GGUF file");
  refused(folder.write("model.zip", "PK\3\4", 4), LD_FILE,
          "not a GGUF file: it begins with the bytes 50 4b 03 04 ('PK..'), expected 47 47 55 46 ('GGUF')");
  refused(folder.write("short.gguf", "GGUF", 4), LD_FILE, "version at byte 4 needs 4 bytes, but only 0 are left");
}

TEST(no_permission) {
  Folder folder;
  const std::string path = folder.write("secret.gguf", "GGUF", 4);
  chmod(path.c_str(), 0);
  constexpr uid_t kNobody = 65534;
  const bool superuser = geteuid() == 0;  // may read every file
  if (superuser && seteuid(kNobody) != 0) SKIP("a file without permission (cannot act as another user)");
  refused(path, LD_FILE, "cannot be opened: Permission denied");
  if (superuser) CHECK(seteuid(0) == 0);
}

TEST(forgotten_parts_read_the_same) {
  Folder folder;
  std::vector<uint8_t> content(5 * 65536 + 77);
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<uint8_t>(i * 7 + i / 4096);
  const std::string path = folder.write("bytes", content.data(), content.size());
  for (Gguf::Access access : kBoth) {
    const FileBytes file(path, access);
    const auto bytes = file.bytes();
    REQUIRE(bytes.size() == content.size());
    for (size_t begin : {size_t{0}, size_t{1}, size_t{4096}, size_t{70000}, content.size() - 1}) {
      for (size_t size : {size_t{0}, size_t{1}, size_t{4095}, size_t{200000}, content.size()}) {
        CHECK(memcmp(bytes.data(), content.data(), content.size()) == 0);
        file.forget(bytes.subspan(begin, std::min(size, bytes.size() - begin)));
      }
    }
    CHECK(memcmp(bytes.data(), content.data(), content.size()) == 0);
  }
}

TEST(no_memory) {
  // A sparse file, and an address space that is taken but for pieces smaller than it.
  constexpr size_t kSize = size_t{1} << 43;
  Folder folder;
  const std::string path = folder.write("huge.gguf", "GGUF", 4);
  if (truncate(path.c_str(), kSize) != 0) SKIP("a file of 8 TiB (the file system refuses it)");
  std::vector<void*> taken;
  for (;;) {
    void* area = mmap(nullptr, kSize, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED || taken.size() > 1000) break;
    taken.push_back(area);
  }
  refused(path, LD_MEMORY, "no memory for its 8796093022208 bytes: Cannot allocate memory");
  for (void* area : taken) munmap(area, kSize);
}
