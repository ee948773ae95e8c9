// Repacking of a file's matrix into panels (gemm.h). Every quantised type of the file is one row of a table here: the
// kind it is kept as and a function that splits one block into integers and exact scales; the rest is shared. Weights
// are never requantised: a packed matrix holds the file's values, only their order and width differ.
// Not here: float decoding (quant/), unpacking (gemm_<row>.cpp).
#include <sys/mman.h>

#include <atomic>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cpu/gemm.h"
#include "cpu/pool.h"
#include "error.h"

namespace ld {
namespace {

constexpr int kSuper = 256;

// One block of a row as integers: w = scale * (q - offset) + minimum, scale = d * code and minimum = -dmin * code for
// super kinds. 4-bit kinds hold q as stored (0..15), 8-bit kinds as a signed value.
struct Split {
  int8_t q[kSuper];
  uint16_t d, dmin;  // float16; dmin is the minimum itself where the kind is not super
  int8_t codes[kSuper / 16];
  uint8_t min_codes[kSuper / kBlock];
};

uint16_t u16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
uint32_t u32(const uint8_t* p) { return u16(p) | static_cast<uint32_t>(u16(p + 2)) << 16; }

void split_nibbles(const uint8_t* qs, int8_t* q) {
  for (int i = 0; i < 16; ++i) {
    q[i] = qs[i] & 15;
    q[i + 16] = qs[i] >> 4;
  }
}

void split_q4_0(const uint8_t* p, Split* out) {
  out->d = u16(p);
  split_nibbles(p + 2, out->q);
}

void split_q4_1(const uint8_t* p, Split* out) {
  out->d = u16(p);
  out->dmin = u16(p + 2);
  split_nibbles(p + 4, out->q);
}

// Fifth bits in one word, low nibbles after it.
void split_five(const uint8_t* p, int offset, int8_t* q) {
  split_nibbles(p + 4, q);
  const uint32_t high = u32(p);
  for (int i = 0; i < kBlock; ++i) q[i] = static_cast<int8_t>((q[i] | (high >> i & 1) << 4) - offset);
}

void split_q5_0(const uint8_t* p, Split* out) {
  out->d = u16(p);
  split_five(p + 2, 16, out->q);
}

void split_q5_1(const uint8_t* p, Split* out) {
  out->d = u16(p);
  out->dmin = u16(p + 2);
  split_five(p + 4, 0, out->q);
}

void split_q8_0(const uint8_t* p, Split* out) {
  out->d = u16(p);
  memcpy(out->q, p + 2, kBlock);
}

// The head that Q4_K and Q5_K share: d, dmin, and 6-bit codes of 8 blocks in 12 bytes.
void split_k_scales(const uint8_t* p, Split* out) {
  out->d = u16(p);
  out->dmin = u16(p + 2);
  const uint8_t* s = p + 4;
  for (int i = 0; i < 4; ++i) {
    out->codes[i] = s[i] & 63;
    out->min_codes[i] = s[i + 4] & 63;
    out->codes[i + 4] = static_cast<int8_t>((s[i + 8] & 15) | (s[i] >> 6) << 4);
    out->min_codes[i + 4] = static_cast<uint8_t>(s[i + 8] >> 4 | (s[i + 4] >> 6) << 4);
  }
}

// 64 values per 32 bytes: low nibbles first.
void split_k_nibbles(const uint8_t* qs, int8_t* q) {
  for (int i = 0; i < kSuper / 2; ++i) {
    const int at = i / 32 * 64 + i % 32;
    q[at] = qs[i] & 15;
    q[at + 32] = qs[i] >> 4;
  }
}

void split_q4_k(const uint8_t* p, Split* out) {
  split_k_scales(p, out);
  split_k_nibbles(p + 16, out->q);
}

void split_q5_k(const uint8_t* p, Split* out) {
  split_k_scales(p, out);
  split_k_nibbles(p + 48, out->q);
  for (int i = 0; i < kSuper; ++i) out->q[i] = static_cast<int8_t>(out->q[i] | (p[16 + i % 32] >> (i / 32) & 1) << 4);
}

// Low nibbles [2][64], high pairs [2][32], one signed scale per 16, d last.
void split_q6_k(const uint8_t* p, Split* out) {
  const uint8_t *low = p, *high = p + 128;
  for (int i = 0; i < kSuper; ++i) {
    const int half = i / 128, j = i % 128;
    const int nibble = low[half * 64 + j % 64] >> (j / 64 * 4) & 15;
    const int pair = high[half * 32 + j % 32] >> (j / 32 * 2) & 3;
    out->q[i] = static_cast<int8_t>((nibble | pair << 4) - 32);
  }
  memcpy(out->codes, p + 192, 16);
  out->d = u16(p + 208);
}

struct PackRow {
  TensorType type;
  PackedKind kind;
  void (*split)(const uint8_t* block, Split* out);  // null: float kinds
};

constexpr PackRow kRows[] = {
    {TensorType::f32, PackedKind::f32, nullptr},
    {TensorType::f16, PackedKind::f16, nullptr},
    {TensorType::bf16, PackedKind::bf16, nullptr},
    {TensorType::q4_0, PackedKind::i4, split_q4_0},
    {TensorType::q4_1, PackedKind::i4_min, split_q4_1},
    {TensorType::q5_0, PackedKind::i8, split_q5_0},
    {TensorType::q5_1, PackedKind::i8_min, split_q5_1},
    {TensorType::q8_0, PackedKind::i8, split_q8_0},
    {TensorType::q4_k, PackedKind::i4_super_min, split_q4_k},
    {TensorType::q5_k, PackedKind::i8_super_min, split_q5_k},
    {TensorType::q6_k, PackedKind::i8_super, split_q6_k},
};

constexpr PackedTraits kTraits[static_cast<int>(PackedKind::count)] = {
    {"f32", false, 32, 1, 0, false, false, 0},
    {"f16", false, 16, 1, 0, false, false, 0},
    {"bf16", false, 16, 1, 0, false, false, 0},
    {"i4", true, 4, kBlock, 32, false, false, 8},
    {"i4_min", true, 4, kBlock, 32, true, false, 0},
    {"i8", true, 8, kBlock, 32, false, false, 0},
    {"i8_min", true, 8, kBlock, 32, true, false, 0},
    {"i4_super_min", true, 4, kSuper, 32, true, true, 0},
    {"i8_super_min", true, 8, kSuper, 32, true, true, 0},
    {"i8_super", true, 8, kSuper, 16, false, true, 0},
};

// Where the parts of a record begin; the order that record_bytes states.
struct RecordLayout {
  size_t dmin, codes, min_codes, q, bytes;
  RecordLayout(const PackedTraits& t, int panel) {
    const size_t w = panel;
    dmin = 2 * w;
    codes = dmin + (t.minimum ? 2 * w : 0);
    min_codes = codes + (t.super ? t.record / t.span * w : 0);
    q = min_codes + (t.super && t.minimum ? t.record / kBlock * w : 0);
    bytes = q + t.record * w * t.bits / 8;
  }
};

// Writes channel c of a record.
void put(const PackedTraits& t, const RecordLayout& at, int panel, const Split& split, int c, uint8_t* record) {
  memcpy(record + 2 * c, &split.d, 2);
  if (t.minimum) memcpy(record + at.dmin + 2 * c, &split.dmin, 2);
  if (t.super) {
    for (int i = 0; i < t.record / t.span; ++i) record[at.codes + i * panel + c] = static_cast<uint8_t>(split.codes[i]);
    if (t.minimum) {
      for (int i = 0; i < t.record / kBlock; ++i) record[at.min_codes + i * panel + c] = split.min_codes[i];
    }
  }
  uint8_t* q = record + at.q + 4 * c;
  const int step = t.bits == 4 ? 8 : 4;
  for (int i = 0; i < t.record; i += step, q += 4 * panel) {
    uint32_t four;
    memcpy(&four, split.q + i, 4);
    if (t.bits == 4) {
      uint32_t next;
      memcpy(&next, split.q + i + 4, 4);
      four |= next << 4;
    }
    memcpy(q, &four, 4);
  }
}

// The first block of a row of the file with a scale (or float) that is not finite, or -1.
int64_t first_bad_block(const TypeTraits& type, const uint8_t* row, size_t blocks) {
  if (type.finite(row, blocks * type.block)) return -1;
  int64_t block = 0;
  while (type.finite(row + block * type.block_bytes, type.block)) ++block;
  return block;
}

// Records of channels [0, channels) of one panel, from whole rows of the file.
void pack_integers(const PackRow& row, const PackedTraits& t, int panel, const uint8_t* rows, size_t row_bytes,
                   int channels, int k, size_t block_bytes, uint8_t* out) {
  const RecordLayout at(t, panel);
  Split split = {};
  for (int record = 0; record < k / t.record; ++record, out += at.bytes) {
    for (int c = 0; c < channels; ++c) {
      row.split(rows + c * row_bytes + record * block_bytes, &split);
      put(t, at, panel, split, c, out);
    }
  }
}

// The same for float kinds: [k][panel] of `size` bytes.
void pack_floats(int size, int panel, const uint8_t* rows, size_t row_bytes, int channels, int k, uint8_t* out) {
  for (int c = 0; c < channels; ++c) {
    const uint8_t* from = rows + c * row_bytes;
    uint8_t* to = out + static_cast<size_t>(c) * size;
    for (int i = 0; i < k; ++i, from += size, to += static_cast<size_t>(panel) * size) memcpy(to, from, size);
  }
}

}  // namespace

const PackedTraits& packed_traits(PackedKind kind) { return kTraits[static_cast<int>(kind)]; }

size_t record_bytes(const PackedTraits& traits, int panel) {
  if (!traits.integer) return static_cast<size_t>(panel) * traits.bits / 8;
  return RecordLayout(traits, panel).bytes;
}

int PackedMatrix::panels() const { return (n_ + kernels_->panel - 1) / kernels_->panel; }

PackedMatrix* PackedMatrix::pack(const KernelRow& kernel_row, const Tensor& tensor, Pool& pool) {
  const std::string name(tensor.name);
  const PackRow* row = nullptr;
  for (const PackRow& each : kRows) {
    if (each.type == tensor.type->type) row = &each;
  }
  if (!row) {
    throw Error(LD_FILE,
                text("%s: type %s cannot be run; convert the model to another type", name.c_str(), tensor.type->name));
  }
  if (tensor.rows() > INT_MAX / 2 || tensor.columns() > INT_MAX / 2) {
    throw Error(LD_FILE, text("%s: a matrix of %llu x %llu is too large", name.c_str(),
                              static_cast<unsigned long long>(tensor.rows()),
                              static_cast<unsigned long long>(tensor.columns())));
  }
  std::unique_ptr<PackedMatrix> matrix(new PackedMatrix);
  matrix->kernels_ = kernel_row.gemm;
  matrix->kind_ = row->kind;
  matrix->n_ = static_cast<int>(tensor.rows());
  matrix->k_ = static_cast<int>(tensor.columns());
  const PackedTraits& traits = matrix->traits();
  const int panel = matrix->kernels_->panel, panels = matrix->panels(), k = matrix->k_, n = matrix->n_;
  matrix->panel_bytes_ = record_bytes(traits, panel) * (k / traits.record);
  matrix->panel_bytes_ = (matrix->panel_bytes_ + 63) / 64 * 64;
  matrix->bytes_ = matrix->panel_bytes_ * panels;

  // Anonymous memory is zero, as the padding must be. Large pages save translations in the product.
  void* data = mmap(nullptr, matrix->bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw Error(LD_MEMORY, text("%s: %zu bytes of memory could not be had", name.c_str(), matrix->bytes_));
  }
  matrix->data_ = static_cast<uint8_t*>(data);
#ifdef MADV_HUGEPAGE
  madvise(data, matrix->bytes_, MADV_HUGEPAGE);
#endif

  const size_t blocks_per_row = tensor.columns() / tensor.type->block;
  const size_t row_bytes = blocks_per_row * tensor.type->block_bytes;
  std::atomic<int64_t> first_bad{INT64_MAX};
  auto report = [&](int64_t block) {
    for (int64_t known = first_bad; block < known && !first_bad.compare_exchange_weak(known, block);) {
    }
  };
  pool.parallel(panels, [&](int p, int) {
    const uint8_t* rows = tensor.data.data() + static_cast<size_t>(p) * panel * row_bytes;
    const int channels = std::min(panel, n - p * panel);
    uint8_t* out = matrix->data_ + static_cast<size_t>(p) * matrix->panel_bytes_;
    for (int c = 0; c < channels; ++c) {
      const int64_t bad = first_bad_block(*tensor.type, rows + c * row_bytes, blocks_per_row);
      if (bad < 0) continue;
      report((static_cast<int64_t>(p) * panel + c) * static_cast<int64_t>(blocks_per_row) + bad);
      return;
    }
    if (traits.integer) {
      pack_integers(*row, traits, panel, rows, row_bytes, channels, k, tensor.type->block_bytes, out);
    } else {
      pack_floats(traits.bits / 8, panel, rows, row_bytes, channels, k, out);
    }
  });
  if (first_bad.load() != INT64_MAX) {
    throw Error(LD_FILE, text("%s: block %lld has a %s that is not finite; the file is damaged", name.c_str(),
                              static_cast<long long>(first_bad.load()), traits.integer ? "scale" : "value"));
  }
  return matrix.release();
}

PackedMatrix::~PackedMatrix() {
  if (data_) munmap(data_, bytes_);
}

}  // namespace ld
