// Packed matrices: their memory, and the repacking of a tensor on all threads, panel by panel. A panel is repacked in
// pieces of some hundred bytes per channel: what is read is checked just before, so it comes from memory once, and what
// is written stays in the nearest cache until it is complete. Not here: the order of bits (repack.cpp).
#include <sys/mman.h>

#include <atomic>
#include <climits>
#include <cstring>

#include "cpu/pool.h"
#include "cpu/repack.h"
#include "error.h"

namespace ld {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kLargePage = size_t{2} << 20;
constexpr size_t kSlab = size_t{64} << 20;  // addresses taken at a time; memory is used as it is written
constexpr int kPieceBytes = 512;            // most bytes of a channel per piece, at least one block of any type

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// What channels past the last one are packed from.
constexpr uint8_t kZeros[kPieceBytes] = {};

// The first block of a row of the file with a scale (or float) that is not finite, or -1.
int64_t first_bad_block(const TypeTraits& type, const uint8_t* row, size_t blocks) {
  if (type.finite(row, blocks * type.block)) return -1;
  int64_t block = 0;
  while (type.finite(row + block * type.block_bytes, type.block)) ++block;
  return block;
}

// Packs the first `channels` of a panel from rows of `blocks` blocks. Returns the first bad block, counted through the
// rows, or -1.
int64_t pack_panel(const Repack& repack, const TypeTraits& type, int panel, const uint8_t* from, size_t blocks,
                   int channels, uint8_t* out) {
  const size_t row_bytes = blocks * type.block_bytes, piece = kPieceBytes / type.block_bytes;
  const size_t record = record_bytes(packed_traits(repack.kind), panel);
  for (size_t block = 0; block < blocks; block += piece) {
    const size_t count = blocks - block < piece ? blocks - block : piece;
    const uint8_t* rows[kMaxPanel];
    bool finite = true;
    for (int c = 0; c < panel; ++c) {
      rows[c] = c < channels ? from + c * row_bytes + block * type.block_bytes : kZeros;
      if (c >= channels) continue;
      // Pieces are too short for the processor to see a stream: ask for the next one.
      for (size_t i = 0; i < piece * type.block_bytes; i += kLine) {
        __builtin_prefetch(rows[c] + piece * type.block_bytes + i);
      }
      finite = type.finite(rows[c], count * type.block) && finite;
    }
    if (!finite) {
      for (int c = 0; c < channels; ++c) {
        const int64_t bad = first_bad_block(type, from + c * row_bytes, blocks);
        if (bad >= 0) return static_cast<int64_t>(c * blocks) + bad;
      }
    }
    repack.records(rows, panel, static_cast<int>(count), out + block * record);
  }
  return -1;
}

std::shared_ptr<uint8_t> map_slab(size_t size) {
  const size_t mapped = size + kLargePage;
  void* got = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (got == MAP_FAILED) throw Error(LD_MEMORY, text("%zu bytes of memory could not be had", size));
  const auto aligned = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(got), kLargePage));
#ifdef MADV_HUGEPAGE
  madvise(aligned, size, MADV_HUGEPAGE);  // a wish: nothing depends on it
#endif
  return std::shared_ptr<uint8_t>(aligned, [got, mapped](uint8_t*) { munmap(got, mapped); });
}

}  // namespace

std::shared_ptr<uint8_t> PackedMemory::take(size_t bytes) {
  bytes = round_up(bytes, kLine);
  if (bytes > size_ - used_) {
    const size_t size = round_up(bytes > kSlab ? bytes : kSlab, kLargePage);
    if (!counts_only_) slab_ = map_slab(size);
    before_ = resident();
    size_ = size;
    used_ = 0;
  }
  std::shared_ptr<uint8_t> part;
  if (!counts_only_) part = std::shared_ptr<uint8_t>(slab_, slab_.get() + used_);
  used_ += bytes;
  return part;
}

size_t PackedMemory::resident() const { return before_ + round_up(used_, kLargePage); }

int PackedMatrix::panels() const { return (n_ + kernels().panel - 1) / kernels().panel; }

PackedMatrix* PackedMatrix::pack(const KernelRow& kernel_row, const Tensor& tensor, Pool& pool, PackedMemory* memory) {
  const std::string name(tensor.name);
  const TypeTraits& type = *tensor.type;
  const Repack* repack = find_repack(type.type);
  if (!repack) {
    throw Error(LD_FILE, text("%s: type %s cannot be run; convert the model to another type", name.c_str(), type.name));
  }
  if (tensor.rows() > INT_MAX / 2 || tensor.columns() > INT_MAX / 2) {
    throw Error(LD_FILE, text("%s: a matrix of %llu x %llu is too large", name.c_str(),
                              static_cast<unsigned long long>(tensor.rows()),
                              static_cast<unsigned long long>(tensor.columns())));
  }
  std::unique_ptr<PackedMatrix> matrix(new PackedMatrix);
  matrix->row_ = &kernel_row;
  matrix->kind_ = repack->kind;
  matrix->n_ = static_cast<int>(tensor.rows());
  matrix->k_ = static_cast<int>(tensor.columns());
  const PackedTraits& traits = matrix->traits();
  const int panel = kernel_row.gemm->panel, panels = matrix->panels();
  matrix->panel_bytes_ = round_up(record_bytes(traits, panel) * (matrix->k_ / traits.record), kLine);
  matrix->bytes_ = matrix->panel_bytes_ * panels;
  matrix->data_ = memory->take(matrix->bytes_);
  if (memory->counts_only()) return matrix.release();

  const size_t blocks = tensor.columns() / type.block;
  std::atomic<int64_t> first_bad{INT64_MAX};
  pool.parallel(panels, [&](int p, int) {
    const int64_t first_row = static_cast<int64_t>(p) * panel;
    const int channels = matrix->n_ - first_row < panel ? static_cast<int>(matrix->n_ - first_row) : panel;
    int64_t bad = pack_panel(*repack, type, panel, tensor.data.data() + first_row * blocks * type.block_bytes, blocks,
                             channels, matrix->data_.get() + p * matrix->panel_bytes_);
    if (bad < 0) return;
    bad += first_row * static_cast<int64_t>(blocks);
    for (int64_t known = first_bad; bad < known && !first_bad.compare_exchange_weak(known, bad);) {
    }
  });
  if (first_bad.load() != INT64_MAX) {
    throw Error(LD_FILE, text("%s: block %lld has a %s that is not finite; the file is damaged", name.c_str(),
                              static_cast<long long>(first_bad.load()), traits.integer ? "scale" : "value"));
  }
  return matrix.release();
}

}  // namespace ld
