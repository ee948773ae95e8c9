// Checks, weights and threads of the quantiser; the arithmetic is encode.inl.
#include "quantize.h"

#include <atomic>
#include <climits>
#include <cmath>
#include <cstring>
#include <vector>

#include "encode.h"
#include "error.h"
#include "half.h"
#if defined(__x86_64__)
#include "x86.h"
#endif

namespace ld {
namespace {

constexpr uint64_t kTaskValues = 16384;  // at least, per task: enough groups to fill all lanes
constexpr float kHalfLargest = 65504.0f;

// A column that never mattered still gets this share of the mean: rounding it carelessly would gain nothing.
constexpr double kLeastWeight = 1e-4;

const quant::EncoderTable& best_encoders() {
#if defined(__x86_64__)
  if (has_avx512_vnni()) return quant::encoders_avx512_vnni;
  if (has_avx2()) return quant::encoders_avx2;
#endif
  return quant::encoders_base;
}

void encode_f32(const quant::Source& source, uint8_t* out) { memcpy(out, source.values, source.count * sizeof(float)); }

template <uint16_t (*kConvert)(float)>
void encode_16(const quant::Source& source, uint8_t* out) {
  for (size_t i = 0; i < source.count; ++i) {
    const uint16_t value = kConvert(source.values[i]);
    memcpy(out + 2 * i, &value, sizeof value);
  }
}

constexpr quant::Encoder kFloats[] = {
    {TensorType::f32, encode_f32},
    {TensorType::f16, encode_16<float_to_half>},
    {TensorType::bf16, encode_16<float_to_bfloat>},
};
constexpr quant::EncoderTable kFloatTable = {kFloats, sizeof kFloats / sizeof *kFloats};

const quant::Encoder* find_encoder(const quant::EncoderTable& table, TensorType type) {
  for (int i = 0; i < table.count; ++i) {
    if (table.rows[i].type == type) return &table.rows[i];
  }
  return nullptr;
}

const quant::Encoder* find_encoder(TensorType type) {
  const quant::Encoder* row = find_encoder(kFloatTable, type);
  return row != nullptr ? row : find_encoder(best_encoders(), type);
}

// The largest magnitude that every block of a type can hold: half precision scales and offsets bound it.
float largest_value(TensorType type) {
  return type == TensorType::f32 ? 0x1.fffffep127f : type == TensorType::bf16 ? 0x1.fep127f : kHalfLargest;
}

// Weights of mean 1 in every column, so that sums of them neither overflow nor vanish.
std::vector<float> column_weights(const float* importance, uint64_t columns) {
  std::vector<float> weights(columns, 1.0f);
  if (importance == nullptr) return weights;
  double sum = 0;
  for (uint64_t i = 0; i < columns; ++i) {
    if (!(importance[i] >= 0 && std::isfinite(importance[i])))
      throw Error(LD_INVALID, text("the importance of column %llu is %g, expected a number of at least 0",
                                   static_cast<unsigned long long>(i), static_cast<double>(importance[i])));
    sum += importance[i];
  }
  if (sum == 0) return weights;
  const double mean = sum / static_cast<double>(columns);
  for (uint64_t i = 0; i < columns; ++i) {
    weights[i] = static_cast<float>(importance[i] / mean + kLeastWeight);
  }
  return weights;
}

// False for a NaN too. Without an early exit, so that it is vectorised.
bool all_inside(const float* values, uint64_t count, float largest) {
  int outside = 0;
  for (uint64_t i = 0; i < count; ++i) outside |= !(std::fabs(values[i]) <= largest);
  return outside == 0;
}

}  // namespace

bool can_quantize(TensorType type) { return find_encoder(type) != nullptr; }

void quantize_rows(const TypeTraits& type, const float* from, uint64_t rows, uint64_t columns, const float* importance,
                   Pool& pool, uint8_t* out) {
  const quant::Encoder* encoder = find_encoder(type.type);
  if (encoder == nullptr) throw Error(LD_INVALID, text("type %s cannot be written", type.name));
  if (columns == 0 || columns % type.block != 0)
    throw Error(LD_INVALID, text("rows of %llu values do not divide into the blocks of %u that type %s has",
                                 static_cast<unsigned long long>(columns), type.block, type.name));
  const std::vector<float> weights = column_weights(importance, columns);
  const float largest = largest_value(type.type);

  uint64_t rows_per_task = (kTaskValues + columns - 1) / columns;
  if (rows / rows_per_task >= INT_MAX) rows_per_task = rows / (INT_MAX - 1) + 1;
  const int tasks = static_cast<int>((rows + rows_per_task - 1) / rows_per_task);
  const size_t row_bytes = columns / type.block * type.block_bytes;
  std::atomic<uint64_t> first_bad{UINT64_MAX};
  pool.parallel(tasks, [&](int task, int) {
    const uint64_t first = task * rows_per_task;
    const uint64_t count = (rows - first < rows_per_task ? rows - first : rows_per_task) * columns;
    const float* values = from + first * columns;
    if (!all_inside(values, count, largest)) {
      uint64_t bad = first * columns;
      while (all_inside(from + bad, 1, largest)) ++bad;
      for (uint64_t known = first_bad; bad < known && !first_bad.compare_exchange_weak(known, bad);) {
      }
      return;
    }
    encoder->encode({values, count, weights.data(), columns}, out + first * row_bytes);
  });
  const uint64_t bad = first_bad.load();
  if (bad == UINT64_MAX) return;
  const double value = from[bad];
  const auto row = static_cast<unsigned long long>(bad / columns);
  const auto column = static_cast<unsigned long long>(bad % columns);
  if (!std::isfinite(value))
    throw Error(LD_INVALID, text("row %llu, column %llu holds %g, which is not finite", row, column, value));
  throw Error(LD_INVALID, text("row %llu, column %llu holds %g, too large for type %s, which holds up to %g", row,
                               column, value, type.name, static_cast<double>(largest)));
}

}  // namespace ld
