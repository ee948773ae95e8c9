// The linear layer: prepares a slab of input rows once, then shares tiles of (rows, panels) of all outputs out to the
// threads. A task walks k in chunks; each chunk of a panel is unpacked once and used by all its rows, while the sums of
// the task stay in a small buffer. Not here: arithmetic (gemm_<row>.cpp), what produces the rows (vector.h).
#include <algorithm>
#include <cstring>

#include "cpu/fold.h"
#include "cpu/pool.h"
#include "cpu/vector.h"

namespace ld {
namespace {

constexpr size_t kLine = 64;

// So few rows only read weights, fastest from front to end of a panel.
constexpr int kFewRows = 4;
// Up to here floats go by short chunks, which stay in the nearest cache between unpacking and multiplying.
constexpr int kSomeRows = 64;

constexpr size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Parts of the buffer that holds one unpacked chunk.
constexpr size_t kStartAt = static_cast<size_t>(kChunk) * kMaxPanel;
constexpr size_t kScalesSize = kChunk / 16 * kMaxPanel * sizeof(float);
constexpr size_t kScaleAt = kStartAt + kScalesSize;
constexpr size_t kMinimumAt = kScaleAt + kScalesSize;
constexpr size_t kInt8Size = kMinimumAt + kScalesSize;
constexpr size_t kFloatSize = static_cast<size_t>(kFloatChunk) * kMaxPanel * sizeof(float);
constexpr size_t kUnpackedSize = round_up(std::max(kInt8Size, kFloatSize), kLine);
constexpr size_t kSumsSize = sizeof(float) * kTaskRows * kTaskPanels * kMaxPanel;

// Rows of the slab are a line longer than needed, so that rows of a tile do not compete for the same cache sets.
size_t q_stride_of(int k) { return round_up(k, kLine) + kLine; }
size_t block_stride_of(int k) { return round_up((k + kBlock - 1) / kBlock, 16) + 16; }
size_t x_stride_of(int k) { return round_up(k, 16) + 16; }

// The i-th of `parts` even parts of `total`, in units of `unit`: where it begins.
int part(int total, int unit, int parts, int i) {
  const int units = (total + unit - 1) / unit;
  return std::min(total, static_cast<int>(static_cast<int64_t>(units) * i / parts) * unit);
}

int parts_of(int total, int most) { return (total + most - 1) / most; }

void prefetch(const uint8_t* begin, const uint8_t* end) {
  for (; begin < end; begin += kLine) __builtin_prefetch(begin, 0, 2);
}

// scale * sum of q of every half block.
void sum_halves(const Int8Row& row, int k, uint8_t flip, float* out) {
  constexpr int kHalf = kBlock / 2;
  for (int h = 0; h < k / kHalf; ++h) {
    int32_t sum = 0;
    for (int i = 0; i < kHalf; ++i) sum += static_cast<int8_t>(row.q[h * kHalf + i] ^ flip);
    out[h] = row.scale[h / 2] * static_cast<float>(sum);
  }
}

}  // namespace

// ---- memory ----

LinearScratch::LinearScratch(Math math, int rows, int max_k, int threads, void* memory)
    : max_k_(max_k), threads_count_(threads), math_(math) {
  const size_t slab = std::min(rows, kSlabRows);
  uint8_t* at = static_cast<uint8_t*>(memory);
  auto take = [&](size_t bytes) {
    uint8_t* part = at;
    at += round_up(bytes, kLine);
    return part;
  };
  q_ = take(slab * q_stride_of(max_k));
  scale_ = reinterpret_cast<float*>(take(slab * block_stride_of(max_k) * sizeof(float)));
  scaled_sum_ = reinterpret_cast<float*>(take(slab * block_stride_of(max_k) * sizeof(float)));
  sum_ = reinterpret_cast<int32_t*>(take(slab * block_stride_of(max_k) * sizeof(int32_t)));
  half_sum_ = reinterpret_cast<float*>(take(2 * slab * block_stride_of(max_k) * sizeof(float)));
  x_ = reinterpret_cast<float*>(take(slab * x_stride_of(max_k) * sizeof(float)));
  thread_bytes_ = kUnpackedSize + kSumsSize + round_up(max_k * sizeof(float), kLine);
  threads_ = take(thread_bytes_ * threads);
}

size_t linear_scratch_bytes(int rows, int max_k, int threads) {
  const size_t slab = std::min(rows, kSlabRows);
  return round_up(slab * q_stride_of(max_k), kLine) + 5 * round_up(slab * block_stride_of(max_k) * 4, kLine) +
         round_up(slab * x_stride_of(max_k) * sizeof(float), kLine) +
         threads * (kUnpackedSize + kSumsSize + round_up(max_k * sizeof(float), kLine));
}

Int8Row LinearScratch::int8_row(int r) const {
  const ptrdiff_t at = r * block_stride_;
  return {q_ + r * q_stride_, scale_ + at, scaled_sum_ + at, sum_ + at};
}

LinearScratch::Thread LinearScratch::thread(int index) const {
  uint8_t* at = threads_ + index * thread_bytes_;
  return {at, reinterpret_cast<float*>(at + kUnpackedSize), reinterpret_cast<float*>(at + kUnpackedSize + kSumsSize)};
}

// ---- rows ----

void prepare(const KernelRow& row, Pool& pool, LinearScratch* scratch, const LinearInput& input, int first, int count,
             InputForms forms) {
  scratch->count_ = count;
  scratch->q_stride_ = static_cast<ptrdiff_t>(q_stride_of(input.width));
  scratch->block_stride_ = static_cast<ptrdiff_t>(block_stride_of(input.width));
  scratch->x_stride_ = static_cast<ptrdiff_t>(x_stride_of(input.width));
  const bool fast = scratch->math_ == Math::fast;
  const auto quantize = fast ? row.fold->quantize : row.gemm->quantize;
  // Few tasks: to hand one out takes a quarter of the time of a row.
  const int tasks = std::min(count, 4 * pool.threads());
  pool.parallel(tasks, [&](int task, int thread) {
    for (int r = part(count, 1, tasks, task); r < part(count, 1, tasks, task + 1); ++r) {
      float* x = forms.floats ? scratch->float_row(r) : scratch->thread(thread).produced;
      row.vector->produce(input, first + r, x);
      if (!forms.int8) continue;
      const Int8Row to = scratch->int8_row(r);
      quantize(x, input.width, to);
      if (forms.half_sums && !fast) sum_halves(to, input.width, row.gemm->flip, scratch->half_sums(r));
    }
  });
}

// ---- product ----

namespace {

// Rows of a scratch times panels of a matrix, for one thread.
struct Product {
  const PackedMatrix& matrix;
  const LinearScratch& scratch;
  int row0, row1;
  uint8_t* unpacked;
  float* out;  // of the panel at hand
  ptrdiff_t stride;

  // What is needed next, to be asked for meanwhile.
  struct Ahead {
    const uint8_t* at;
    size_t bytes;
  };

  // Values [k0, k0 + k) of a panel times all rows.
  void multiply_int8(const uint8_t* records, int k0, int k, const Ahead& ahead) const {
    const GemmKernels& exact = matrix.kernels();
    const FoldKernels& fold = *matrix.row().fold;
    const PackedTraits& traits = matrix.traits();
    const bool fast = scratch.math() == Math::fast;
    Int8Chunk chunk;
    chunk.k = k;
    chunk.reach = traits.reach;
    chunk.span = traits.span;
    chunk.offset = traits.offset;
    chunk.minimum_used = traits.minimum;
    chunk.q = unpacked;
    chunk.start = reinterpret_cast<int32_t*>(unpacked + kStartAt);
    chunk.scale = reinterpret_cast<float*>(unpacked + kScaleAt);
    chunk.minimum = reinterpret_cast<float*>(unpacked + kMinimumAt);
    chunk.group_scale = reinterpret_cast<float*>(unpacked + kStartAt);
    (fast ? fold.unpack : exact.int8_unpack)(traits, records, k, &chunk);

    const int sums_per_block = kBlock / traits.span;
    const int tiles = parts_of(row1 - row0, fast ? fold.rows : exact.int8_rows), block = k0 / (fast ? kGroup : kBlock);
    const int lines = parts_of(static_cast<int>(ahead.bytes), static_cast<int>(kLine));
    const int lines_per_block = parts_of(lines, tiles * (k / kBlock)), lines_per_tile = lines_per_block * (k / kBlock);
    for (int t = 0; t < tiles; ++t) {
      const int begin = part(row1 - row0, 1, tiles, t), end = part(row1 - row0, 1, tiles, t + 1);
      Int8Tile tile;
      tile.chunk = &chunk;
      tile.row = scratch.int8_row(row0 + begin);
      tile.row.q += k0;
      tile.row.scale += block;
      tile.row.scaled_sum =
          sums_per_block == 1 ? tile.row.scaled_sum + block : scratch.half_sums(row0 + begin) + sums_per_block * block;
      tile.row.sum += block;
      tile.q_stride = scratch.q_stride();
      tile.block_stride = scratch.block_stride();
      tile.rows = end - begin;
      tile.out = out + begin * stride;
      tile.out_stride = stride;
      tile.ahead = ahead.at + t * lines_per_tile * kLine;
      tile.ahead_lines = t * lines_per_tile < lines ? lines_per_block : 0;
      (fast ? fold.tile : exact.int8_tile)(tile);
    }
  }

  void multiply_float(const uint8_t* records, int k0, int k, const Ahead& ahead) const {
    const GemmKernels& kernels = matrix.kernels();
    const float* w = reinterpret_cast<const float*>(records);
    if (matrix.kind() != PackedKind::f32) {
      kernels.float_unpack(matrix.kind(), records, k, reinterpret_cast<float*>(unpacked));
      w = reinterpret_cast<const float*>(unpacked);
    }
    const int tiles = parts_of(row1 - row0, kernels.float_rows);
    for (int t = 0; t < tiles; ++t) {
      prefetch(ahead.at + ahead.bytes * t / tiles, ahead.at + ahead.bytes * (t + 1) / tiles);
      const int begin = part(row1 - row0, 1, tiles, t), end = part(row1 - row0, 1, tiles, t + 1);
      kernels.float_tile(
          {w, k, scratch.float_row(row0 + begin) + k0, scratch.x_stride(), end - begin, out + begin * stride, stride});
    }
  }
};

}  // namespace

void multiply_panels(const PackedMatrix& matrix, const LinearScratch& scratch, int thread, int panel0, int panel1,
                     int row0, int row1, float* out, ptrdiff_t stride) {
  const PackedTraits& traits = matrix.traits();
  const int panel = matrix.kernels().panel, k = matrix.k();
  const int float_chunk = row1 - row0 <= kSomeRows ? kFloatChunk / 4 : kFloatChunk;
  const int chunks = std::max(1, parts_of(k, traits.integer ? kChunk : float_chunk));
  const bool grouped = traits.integer && scratch.math() == Math::fast;
  const int unit = grouped ? std::max(traits.record, kGroup) : traits.record;  // what a chunk is a multiple of
  const size_t record = record_bytes(traits, panel);
  for (int r = 0; r < row1 - row0; ++r) memset(out + r * stride, 0, sizeof(float) * (panel1 - panel0) * panel);
  for (int c = 0; c < chunks; ++c) {
    const int k0 = part(k, unit, chunks, c), k1 = part(k, unit, chunks, c + 1);
    const size_t at = k0 / traits.record * record, bytes = (k1 - k0) / traits.record * record;
    for (int p = panel0; p < panel1; ++p) {
      const uint8_t* records = matrix.panel(p) + at;
      // What is read next: the same chunk of the next panel, the next chunk of the first, or the task that this thread
      // takes next if all threads are as fast.
      const int after = panel1 + (scratch.threads() - 1) * (panel1 - panel0);
      Product::Ahead ahead = {records + matrix.panel_bytes(), bytes};
      if (p + 1 == panel1) {
        ahead.at =
            c + 1 < chunks ? matrix.panel(panel0) + at + bytes : matrix.panel(std::min(after, matrix.panels() - 1));
        if (c + 1 == chunks && after >= matrix.panels()) ahead.bytes = 0;
      }
      const Product product = {matrix,
                               scratch,
                               row0,
                               row1,
                               scratch.thread(thread).unpacked,
                               out + static_cast<ptrdiff_t>(p - panel0) * panel,
                               stride};
      if (traits.integer) {
        product.multiply_int8(records, k0, k1 - k0, ahead);
      } else {
        product.multiply_float(records, k0, k1 - k0, ahead);
      }
    }
  }
}

void linear(const KernelRow& row, Pool& pool, LinearScratch* scratch, const LinearInput& input, int rows,
            const PackedOutput* outputs, int n_outputs) {
  InputForms forms;
  int panels = 0;
  for (int i = 0; i < n_outputs; ++i) {
    forms.add(outputs[i].matrix->traits());
    panels += outputs[i].matrix->panels();
  }
  for (int first = 0; first < rows; first += kSlabRows) {
    const int count = std::min(rows - first, kSlabRows);
    prepare(row, pool, scratch, input, first, count, forms);

    // Large tasks reuse an unpacked chunk and a row longest; small ones keep all threads busy to the end.
    int row_parts = parts_of(count, kTaskRows), group = count <= kFewRows ? 1 : kTaskPanels;
    const int wanted = pool.threads() == 1 ? 1 : 6 * pool.threads();
    while (group > 1 && parts_of(panels, group) * row_parts < wanted) group /= 2;
    while (panels * row_parts < wanted / 2 && count / (2 * row_parts) >= 16) row_parts *= 2;

    int groups = 0;
    for (int i = 0; i < n_outputs; ++i) groups += parts_of(outputs[i].matrix->panels(), group);
    pool.parallel(groups * row_parts, [&](int task, int thread) {
      const int row0 = part(count, 1, row_parts, task / groups), row1 = part(count, 1, row_parts, task / groups + 1);
      int g = task % groups;
      const PackedOutput* output = outputs;
      for (; g >= parts_of(output->matrix->panels(), group); ++output) g -= parts_of(output->matrix->panels(), group);
      const PackedMatrix& matrix = *output->matrix;
      const int panel = matrix.kernels().panel;
      const int panel0 = g * group, panel1 = std::min(panel0 + group, matrix.panels());
      float* sums = scratch->thread(thread).sums;
      const ptrdiff_t stride = static_cast<ptrdiff_t>(panel1 - panel0) * panel;
      multiply_panels(matrix, *scratch, thread, panel0, panel1, row0, row1, sums, stride);

      const int channel = panel0 * panel, channels = std::min(matrix.n(), panel1 * panel) - channel;
      for (int r = row0; r < row1; ++r) {
        row.gemm->finish(sums + (r - row0) * stride, output->bias ? output->bias + channel : nullptr, output->add,
                         channels, output->y + static_cast<ptrdiff_t>(first + r) * output->stride + channel);
      }
    });
  }
}

}  // namespace ld
