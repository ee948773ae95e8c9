// Matrix products of quantised weights on int8 tensor cores: weights stay packed in memory and become bytes in shared
// memory, rows are int8 by blocks of 32, and a block's int32 sum is scaled and added in float32 in the order of
// cpu/gemm.h's exact arithmetic, so that a result is the same bit for bit as the processor's and whatever the tile. Three
// shapes of tile, by the number of rows; none splits k. Not here: what reads a block of the file (decode.h).
#include "cuda/tiles.h"

namespace ld::cuda {
namespace {

// A lane takes four values, kSize / 4 lanes a block or, of kGroup values, a group.
template <int kSize>
__global__ void quantise_kernel(const float* x, ptrdiff_t stride, int k, Quantised out) {
  constexpr int kLanes = kSize / 4;
  const int row = static_cast<int>(blockIdx.x);
  const float* from = x + row * stride;
  const int padded = (k / 4 + kThreads - 1) / kThreads * kThreads;  // whole warps take part in shuffles
  for (int four = threadIdx.x; four < padded; four += kThreads) {
    const bool mine = four < k / 4;
    float values[4] = {};
    uint32_t largest = 0;  // as bits, so that NaN and infinity come out on top
    for (int j = 0; j < 4; ++j) {
      if (mine) values[j] = from[four * 4 + j];
      largest = max(largest, bits_of(values[j]) & 0x7fffffffu);
    }
    for (int step = 1; step < kLanes; step *= 2) largest = max(largest, __shfl_xor_sync(kWholeWarp, largest, step));
    const float most = float_from_bits(largest);
    const bool finite = largest < 0x7f800000u, tiny = most < 0x1p-100f;
    const float inverse = finite && !tiny ? 127.0f / most : 0.0f;
    uint32_t word = 0;
    int sum = 0;
    for (int j = 0; j < 4; ++j) {
      const int q = inverse == 0.0f ? 0 : static_cast<int>(rintf(values[j] * inverse));
      word |= static_cast<uint32_t>(static_cast<uint8_t>(q)) << 8 * j;
      sum += q;
    }
    const ptrdiff_t at = row * out.blocks(k) + four / kLanes;
    if constexpr (kSize == kBlock) {
      for (int step = 1; step < kLanes / 2; step *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, step);
      const int other = __shfl_xor_sync(kWholeWarp, sum, kLanes / 2);
      if (mine && four % kLanes == 0)
        out.sums[at] = (static_cast<uint32_t>(sum) & 0xffff) | static_cast<uint32_t>(other) << 16;
    }
    if (!mine) continue;
    memcpy(out.q + static_cast<ptrdiff_t>(row) * k + four * 4, &word, 4);
    if (four % kLanes == 0) out.scale[at] = !finite ? NAN : tiny ? 0.0f : most / 127.0f;
  }
}

// What a thread has read of a tile, on its way to shared memory: one block of weights, and a block's scale of the rows. The
// rows' bytes are copied by the hardware.
template <class Format>
struct Fetched {
  static constexpr int kParts = kBlock / Format::kSpan;  // scales of a block
  static constexpr int kMinimums = Format::kMinimum ? kParts : 1;
  uint32_t words[kWords];
  float scale[kParts], minimum[kMinimums], x_scale;
  uint32_t x_sums;

  // Zeros where there is no block: its sums go nowhere.
  __device__ void weights(const uint8_t* row, int k, bool present) {
    const uint8_t* from = row + static_cast<size_t>(k / Format::kBlock) * Format::kBytes;
    const int i = k % Format::kBlock;
    LD_UNROLL for (int j = 0; j < kWords; ++j) words[j] = present ? Format::four(from, i + 4 * j) : 0;
    LD_UNROLL for (int part = 0; part < kParts; ++part) {
      scale[part] = present ? Format::scale(from, i + part * Format::kSpan) : 0;
      if constexpr (Format::kMinimum) minimum[part] = present ? Format::minimum(from, i + part * Format::kSpan) : 0;
    }
  }

  __device__ void rows(const Quantised& x, ptrdiff_t at, bool present) {
    x_scale = present ? x.scale[at] : 0;
    if constexpr (Format::kMinimum) x_sums = present ? x.sums[at] : 0;
  }

  // scale * sum of the rows' integers that share minimum `part`.
  __device__ float x_sum(int part) const {
    const int upper = static_cast<int16_t>(x_sums & 0xffff), lower = static_cast<int16_t>(x_sums >> 16);
    return x_scale * static_cast<float>(kParts == 1 ? upper + lower : part == 0 ? upper : lower);
  }
};

// While a tile is multiplied the next one is on its way: rows to the other half of x, weights to registers.
template <class Format, class Tile>
__global__ void __launch_bounds__(kThreads, 2) int8_kernel(Product p, Rows rows) {
  constexpr int kParts = Fetched<Format>::kParts, kMinimums = Fetched<Format>::kMinimums;
  alignas(16) __shared__ uint32_t x[2][Tile::kRows][Tile::kPitch];
  __shared__ uint32_t w[Tile::kColumns][Tile::kPitch];
  __shared__ float w_scale[Tile::kBlocks * kParts][Tile::kColumns], x_scale[Tile::kBlocks][Tile::kRows];
  __shared__ float w_minimum[Tile::kBlocks * kMinimums][Tile::kColumns], x_sum[Tile::kBlocks * kMinimums][Tile::kRows];
  static_assert(Tile::kRows * Tile::kBlocks <= kThreads, "a thread fetches one scale of the rows");
  const Share share = rows.share(p);
  const int row0 = share.first + static_cast<int>(blockIdx.y) * Tile::kRows;
  const int column0 = static_cast<int>(blockIdx.x) * Tile::kColumns;
  if (row0 >= share.last) return;  // the whole block
  const int thread = threadIdx.x;
  const Mine<Tile> mine(thread);
  const int blocks = p.w.k / kBlock, row_count = min(Tile::kRows, share.last - row0);
  // Of w the thread brings one block of a column, of the rows' scales one of a row.
  const int w_column = thread / Tile::kBlocks, w_block = thread % Tile::kBlocks;
  const int x_row = thread / Tile::kBlocks, x_block = thread % Tile::kBlocks;
  Fetched<Format> next;
  const auto fetch = [&](int first, int half) {
    for (int part = thread; part < Tile::kRows * Tile::kBlocks * 2; part += kThreads) {
      const int row = part / (Tile::kBlocks * 2), at = part % (Tile::kBlocks * 2);
      const bool present = row < row_count && first + at / 2 < blocks;
      const ptrdiff_t input = present ? rows.input(row0 + row) : 0;
      const int8_t* from = p.quantised.q + input * p.w.k + (present ? first * kBlock + at * 16 : 0);
      copy_sixteen(&x[half][row][at * 4], from, present);
    }
    const bool there = column0 + w_column < p.w.n && first + w_block < blocks;
    const size_t column = there ? column0 + w_column : 0;
    next.weights(share.data + column * p.w.row_bytes, there ? (first + w_block) * kBlock : 0, there);
    const bool present = x_row < row_count && first + x_block < blocks;
    const ptrdiff_t input = present ? rows.input(row0 + x_row) : 0;
    next.rows(p.quantised, input * blocks + first + x_block, present);
  };
  float sum[Tile::kRowTiles][Tile::kColumnTiles][4] = {};
  fetch(0, 0);
  for (int first = 0, half = 0; first < blocks; first += Tile::kBlocks, half = 1 - half) {
    const int count = min(Tile::kBlocks, blocks - first);
    LD_UNROLL for (int j = 0; j < kWords; ++j) w[w_column][w_block * kWords + j] = next.words[j];
    LD_UNROLL for (int part = 0; part < kParts; ++part) {
      w_scale[w_block * kParts + part][w_column] = next.scale[part];
      if constexpr (Format::kMinimum) w_minimum[w_block * kParts + part][w_column] = next.minimum[part];
    }
    if (x_row < Tile::kRows) {
      x_scale[x_block][x_row] = next.x_scale;
      if constexpr (Format::kMinimum) {
        LD_UNROLL for (int part = 0; part < kParts; ++part) x_sum[x_block * kParts + part][x_row] = next.x_sum(part);
      }
    }
    wait_copies();
    __syncthreads();
    if (first + Tile::kBlocks < blocks) fetch(first + Tile::kBlocks, 1 - half);
    for (int block = 0; block < count; ++block) {
      uint32_t b[Tile::kColumnTiles][2];
      mine.weights(w, block * kWords, block * kWords + 4, b);
      LD_UNROLL for (int r = 0; r < Tile::kRowTiles; ++r) {
        __syncwarp();  // without it the compiler reads ahead of all r more than 128 registers hold
        uint32_t a[4];
        mine.rows(x[half], block * kWords, block * kWords + 4, r, a);
        const int row = mine.row(r, 0);
        const float scales[2] = {x_scale[block][row], x_scale[block][row + 8]};
        LD_UNROLL for (int c = 0; c < Tile::kColumnTiles; ++c) {
          int32_t dot[kParts][4];
          LD_UNROLL for (int i = 0; i < kParts * 4; ++i) dot[i / 4][i % 4] = kSumZero;
          if constexpr (kParts == 1) {
            multiply_bytes(dot[0], a, b[c]);
          } else {
            multiply_bytes(dot[0], a[0], a[1], b[c][0]);
            multiply_bytes(dot[1], a[2], a[3], b[c][1]);
          }
          const int column = mine.column(c, 0);
          LD_UNROLL for (int i = 0; i < 4; ++i) {
            float& y = sum[r][c][i];
            float t = sum_of(dot[0][i]) * w_scale[block * kParts][column + i % 2];
            if constexpr (kParts == 2) t = fmaf(sum_of(dot[1][i]), w_scale[block * 2 + 1][column + i % 2], t);
            y = fmaf(t, scales[i / 2], y);
            if constexpr (Format::kMinimum) {
              LD_UNROLL for (int part = 0; part < kParts; ++part) {
                y = fmaf(w_minimum[block * kParts + part][column + i % 2],
                         x_sum[block * kParts + part][row + i / 2 * 8], y);
              }
            }
          }
        }
      }
    }
    __syncthreads();  // the tile has been read
  }
  mine.put(p, row0, share.last, column0, sum);
}

}  // namespace

void quantise(cudaStream_t stream, const float* x, ptrdiff_t stride, int k, int rows, const Quantised& out) {
  if (out.size == kGroup) {
    LD_LAUNCH((quantise_kernel<kGroup>), dim3(rows), kThreads, stream, x, stride, k, out);
  } else {
    LD_LAUNCH((quantise_kernel<kBlock>), dim3(rows), kThreads, stream, x, stride, k, out);
  }
}

void multiply_int8(cudaStream_t stream, const Product& product, const Rows& rows, int most_rows, int experts) {
  with_tiles(most_rows, [&]<class Tile>() {
    const dim3 grid(parts(product.w.n, Tile::kColumns), parts(most_rows, Tile::kRows), experts);
    with_format(product.w.type, [&]<class Format>() {
      if constexpr (Format::kInteger) {
        LD_LAUNCH((int8_kernel<Format, Tile>), grid, kThreads, stream, product, rows);
      }
    });
  });
}

}  // namespace ld::cuda
