// Fast arithmetic (cpu/fold.h): weights of any type of integers folded to bytes with one scale per group of 128 values, the
// same as on the processor, and their products with rows in int8 by groups on tensor cores, y = fma(scale * dot, row scale,
// y) over groups ascending, bit for bit the processor's whatever the tile. Not here: where the copies lie (forms.cu).
#include "cuda/tiles.h"

namespace ld::cuda {
namespace {

// Sixteen bits of an integer, or zeros of what is none.
__device__ inline int16_t low_half(float x) { return static_cast<int16_t>(static_cast<int>(rintf(x))); }

// A warp folds a group, four values a lane; those past k count as none.
template <class Format>
__global__ void fold_kernel(Source source, uint8_t* to, size_t step) {
  constexpr float kHalf = static_cast<float>(1 << (Format::kReach - 1)), kTop = 2 * kHalf - 1;
  constexpr int kCentre = Format::kMinimum && Format::kReach < 8 ? 1 << (Format::kReach - 1) : 0;
  const int k = source.w.k, groups = (k + kGroup - 1) / kGroup, lane = threadIdx.x % kWarp;
  const size_t item = static_cast<size_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int column = static_cast<int>(item / groups), group = static_cast<int>(item % groups);
  if (column >= source.columns) return;  // the whole warp
  const uint8_t* row = source.data ? source.data[blockIdx.z] : source.w.data;
  row += static_cast<size_t>(source.column + column) * source.w.row_bytes;
  to += blockIdx.z * step;
  const int first = group * kGroup + lane * 4;
  const bool mine = first < k;
  float scale = 0, minimum = 0;
  uint32_t four = 0;
  if (mine) {
    const uint8_t* block = row + static_cast<size_t>(first / Format::kBlock) * Format::kBytes;
    four = Format::four(block, first % Format::kBlock);
    scale = Format::scale(block, first % Format::kBlock) * (1.0f / (1 << Format::kWide));
    minimum = Format::minimum(block, first % Format::kBlock);
  }
  float reach = fabsf(scale) * kHalf;
  if constexpr (Format::kMinimum) reach = fmaxf(fmaxf(reach, fabsf(minimum)), fabsf(fmaf(scale, kTop, minimum)));
  for (int lanes = 1; lanes < kWarp; lanes *= 2) reach = fmaxf(reach, __shfl_xor_sync(kWholeWarp, reach, lanes));
  const float of_group = reach * (1 / 127.0f), inverse = of_group > 0 ? 1 / of_group : 0;
  // In 1/256: a weight is byte `by` / 2^15 of its distance from the middle, plus where the middle is, plus what makes the
  // byte unsigned and rounds.
  const float unit = scale * inverse, b = unit * (256 * kHalf);
  float p = 0x8080;
  if constexpr (Format::kMinimum) p = fmaf(minimum * 256.0f, inverse, fmaf(unit, 256 * kHalf, p));
  const int16_t by = low_half(b > 32767.0f ? 32767.0f : b), plus = low_half(p);
  uint32_t folded = 0;
  for (int j = 0; j < 4; ++j) {
    const int q = static_cast<int8_t>(four >> 8 * j) * (1 << Format::kWide) - kCentre;
    const int16_t value = static_cast<int16_t>(q * (1 << (16 - Format::kReach)));
    const int16_t scaled = static_cast<int16_t>(((value * by >> 14) + 1) >> 1);
    folded |= ((static_cast<uint16_t>(scaled + plus) >> 8) ^ 0x80u) << 8 * j;
  }
  if (mine) memcpy(to + static_cast<size_t>(column) * k + first, &folded, 4);
  if (lane == 0) {
    const size_t at = static_cast<size_t>(source.columns) * k + (static_cast<size_t>(group) * source.columns + column) * 4;
    memcpy(to + at, &of_group, 4);
  }
}

// Tiles are on their way through a ring of stages of one, two or four blocks of k, 40 KiB in all. The halves of a block of
// 32 bytes change places in every second four lines: fragments are read without bank conflicts.
template <class Tile>
struct Ring {
  static constexpr int kBlocks = 128 / Tile::kRows < 4 ? 128 / Tile::kRows : 4;
  static constexpr int kStages = (40 << 10) / (kBlocks * kBlock * (Tile::kRows + Tile::kColumns));
};

__device__ inline int swap_halves(int line) { return line / 4 % 2; }

// A group's sum is below 2^21.
template <class Tile>
__global__ void __launch_bounds__(kThreads) folded_kernel(Product p, Rows rows) {
  constexpr int kBlocks = Ring<Tile>::kBlocks, kStages = Ring<Tile>::kStages, kDepth = kBlocks * kBlock;
  constexpr int kCopies = kDepth / 16, kLines = kThreads / kCopies;  // of a line and stage; lines that are copied at a time
  static_assert(kGroup % kDepth == 0 && Tile::kRows + Tile::kColumns <= kThreads, "a thread brings one scale");
  alignas(16) __shared__ uint32_t x[kStages][kBlocks][Tile::kRows][kWords], w[kStages][kBlocks][Tile::kColumns][kWords];
  __shared__ float w_scale[2][Tile::kColumns], x_scale[2][Tile::kRows];  // of this group and of the one before
  const Share share = rows.share(p);
  const int row0 = share.first + static_cast<int>(blockIdx.y) * Tile::kRows;
  const int column0 = static_cast<int>(blockIdx.x) * Tile::kColumns;
  if (row0 >= share.last) return;  // the whole block
  const int thread = threadIdx.x, k = p.w.k, n = p.w.n;
  const int row_count = min(Tile::kRows, share.last - row0), column_count = min(Tile::kColumns, n - column0);
  const Mine<Tile> mine(thread);

  // What the thread brings: sixteen bytes of some lines, and the scale of a column or of a row.
  const int line = thread / kCopies, at = thread % kCopies * 16, of_block = at / kBlock;
  constexpr int kRowCopies = (Tile::kRows + kLines - 1) / kLines, kColumnCopies = Tile::kColumns / kLines;
  const int8_t* x_from[kRowCopies];
  LD_UNROLL for (int i = 0; i < kRowCopies; ++i) {
    const int row = line + i * kLines;
    x_from[i] = p.quantised.q + (row < row_count ? rows.input(row0 + row) * k + at : 0);
  }
  const uint8_t* w_from = share.data + static_cast<size_t>(column0) * k;
  const auto word = [&](int i) { return (at / 16 % 2 ^ swap_halves(i)) * 4; };
  const auto copy = [&](int first, int stage) {
    const bool within = first + at < k;
    LD_UNROLL for (int i = 0; i < kRowCopies; ++i) {
      const int row = line + i * kLines;
      const bool present = within && row < row_count;
      if (row < Tile::kRows) copy_sixteen(&x[stage][of_block][row][word(row)], x_from[i] + (present ? first : 0), present);
    }
    LD_UNROLL for (int i = 0; i < kColumnCopies; ++i) {
      const int column = line + i * kLines;
      const bool present = within && column < column_count;
      const size_t offset = present ? static_cast<size_t>(column) * k + first + at : 0;
      copy_sixteen(&w[stage][of_block][column][word(column)], w_from + offset, present);
    }
  };
  const float* scale_from = nullptr;
  int scale_step = 1, scale_row = thread - Tile::kColumns;
  if (thread < column_count) {
    scale_from = reinterpret_cast<const float*>(share.data + static_cast<size_t>(n) * k) + column0 + thread;
    scale_step = n;
  } else if (scale_row >= 0 && scale_row < row_count) {
    scale_from = p.quantised.scale + rows.input(row0 + scale_row) * p.quantised.blocks(k);
  }
  const auto scale_of = [&](int group) {
    return scale_from != nullptr ? scale_from[static_cast<size_t>(group) * scale_step] : 0;
  };

  float sum[Tile::kRowTiles][Tile::kColumnTiles][4] = {};
  int32_t dot[Tile::kRowTiles][Tile::kColumnTiles][4];
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage * kDepth < k) copy(stage * kDepth, stage);
    close_copies();
  }
  float next_scale = scale_of(0);
  const int half = swap_halves(mine.group) * 4;
  for (int first = 0, stage = 0; first < k; first += kDepth, stage = stage + 1 < kStages ? stage + 1 : 0) {
    const int group = first / kGroup, end = first + kDepth, later = first + (kStages - 1) * kDepth;
    if (first % kGroup == 0) {
      if (thread < Tile::kColumns) w_scale[group % 2][thread] = next_scale;
      if (scale_row >= 0 && scale_row < Tile::kRows) x_scale[group % 2][scale_row] = next_scale;
      if (first + kGroup < k) next_scale = scale_of(group + 1);
      LD_UNROLL for (int r = 0; r < Tile::kRowTiles; ++r) LD_UNROLL for (int c = 0; c < Tile::kColumnTiles; ++c)
          LD_UNROLL for (int i = 0; i < 4; ++i) dot[r][c][i] = kSumZero;
    }
    wait_copies_but<kStages - 2>();
    __syncthreads();  // and the stage before has been read
    if (later < k) copy(later, stage > 0 ? stage - 1 : kStages - 1);
    close_copies();
    LD_UNROLL for (int block = 0; block < kBlocks; ++block) {
      uint32_t b[Tile::kColumnTiles][2];
      mine.weights(w[stage][block], half, 4 - half, b);
      LD_UNROLL for (int r = 0; r < Tile::kRowTiles; ++r) {
        uint32_t a[4];
        mine.rows(x[stage][block], half, 4 - half, r, a);
        LD_UNROLL for (int c = 0; c < Tile::kColumnTiles; ++c) multiply_bytes(dot[r][c], a, b[c]);
      }
    }
    if (end % kGroup != 0 && end < k) continue;
    LD_UNROLL for (int r = 0; r < Tile::kRowTiles; ++r) LD_UNROLL for (int c = 0; c < Tile::kColumnTiles; ++c)
        LD_UNROLL for (int i = 0; i < 4; ++i) {
      const float t = sum_of(dot[r][c][i]) * w_scale[group % 2][mine.column(c, i)];
      sum[r][c][i] = fmaf(t, x_scale[group % 2][mine.row(r, i)], sum[r][c][i]);
    }
  }
  mine.put(p, row0, share.last, column0, sum);
}

}  // namespace

void multiply_folded(cudaStream_t stream, const Product& product, const Rows& rows, int most_rows, int experts) {
  with_tiles(most_rows, [&]<class Tile>() {
    const dim3 grid(parts(product.w.n, Tile::kColumns), parts(most_rows, Tile::kRows), experts);
    LD_LAUNCH((folded_kernel<Tile>), grid, kThreads, stream, product, rows);
  });
}

void fold(cudaStream_t stream, const Source& source, uint8_t* to, size_t step) {
  const size_t groups = static_cast<size_t>(source.columns) * ((source.w.k + kGroup - 1) / kGroup);
  const dim3 grid(static_cast<unsigned>((groups + kThreads / kWarp - 1) / (kThreads / kWarp)), 1, source.experts);
  with_format(source.w.type, [&]<class Format>() {
    if constexpr (Format::kInteger) LD_LAUNCH((fold_kernel<Format>), grid, kThreads, stream, source, to, step);
  });
}

}  // namespace ld::cuda
