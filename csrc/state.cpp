// The state of a slot as bytes, for ld_session_save and ld_session_load: a header, then for each layer the keys
// [length][kv_heads * head_dim] and the values, float32 in the machine's order, as they are in every device's layout.
// The checksum tells damage, not intent: values are checked to be finite, and nothing else can do harm. Files and the
// identity of the weights are the caller's.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"
#include "session.h"

namespace ld {
namespace {

constexpr char kMagic[8] = {'L', 'D', 'S', 'T', 'A', 'T', 'E', '1'};

struct StateHeader {
  char magic[8];
  int32_t vocab, dim, layers, heads, kv_heads, head_dim, math, length;
  uint64_t checksum;  // of the bytes that follow
};

// FNV-1a over 64-bit words, the last one filled up with zeros; high bits are folded down, as a product only carries up.
class Checksum {
 public:
  void add(const float* values, size_t count) {
    for (size_t i = 0; i < count; i += 2) {
      uint64_t word = 0;
      std::memcpy(&word, values + i, std::min<size_t>(2, count - i) * sizeof(float));
      sum_ = (sum_ ^ word) * 0x100000001b3u;
      sum_ ^= sum_ >> 32;
    }
  }
  uint64_t value() const { return sum_; }

 private:
  uint64_t sum_ = 0xcbf29ce484222325u;
};

}  // namespace

uint64_t Session::state_bytes(int length) const {
  const ModelConfig& c = model_.config();
  if (length < 1 || length > options_.slot_length)
    throw Error(LD_INVALID, text("length is %d, expected 1 to %d", length, options_.slot_length));
  uint64_t width = 0;
  for (int layer = 0; layer < c.layers; layer++) width += c.kv_dim(layer);
  return sizeof(StateHeader) + 2 * sizeof(float) * width * length;
}

void Session::save(int slot, int length, void* out, uint64_t bytes) {
  const ModelConfig& c = model_.config();
  const uint64_t expected = state_bytes(length);
  if (slot < 0 || slot >= options_.slots)
    throw Error(LD_INVALID, text("slot is %d, expected 0 to %d", slot, options_.slots - 1));
  if (bytes != expected)
    throw Error(LD_INVALID,
                text("out_bytes is %llu, expected %llu", (unsigned long long)bytes, (unsigned long long)expected));
  const uint8_t* known = &known_[static_cast<size_t>(slot) * options_.slot_length];
  const int first = static_cast<int>(std::find(known, known + length, 0) - known);
  if (first < length) throw Error(LD_INVALID, text("position %d was never computed, so it has no state", first));

  std::vector<float> k, v;
  char* to = static_cast<char*>(out) + sizeof(StateHeader);
  Checksum checksum;
  for (int layer = 0; layer < c.layers; layer++) {
    const size_t count = static_cast<size_t>(length) * c.kv_dim(layer);
    k.resize(count);
    v.resize(count);
    const auto [ops, context, index] = layer_at(layer);
    ops->read_kv(context, index, slot, length, k.data(), v.data());
    for (const std::vector<float>* part : {&k, &v}) {
      checksum.add(part->data(), count);
      std::memcpy(to, part->data(), count * sizeof(float));
      to += count * sizeof(float);
    }
  }
  StateHeader header{{},      c.vocab,         c.dim,      c.layers,
                     c.heads, c.kv_heads,      c.head_dim, static_cast<int>(options_.math),
                     length,  checksum.value()};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::memcpy(out, &header, sizeof header);
}

Session::LayerState Session::layer_at(int layer) const {
  size_t i = 0;
  while (layer >= model_.parts()[i].last) i++;
  return {model_.parts()[i].ops, contexts_[i], layer - model_.parts()[i].first};
}

int Session::load(int slot, const void* data, uint64_t bytes) {
  const ModelConfig& c = model_.config();
  if (slot < 0 || slot >= options_.slots)
    throw Error(LD_INVALID, text("slot is %d, expected 0 to %d", slot, options_.slots - 1));
  StateHeader h;
  if (bytes < sizeof h || std::memcmp(data, kMagic, sizeof kMagic) != 0)
    throw Error(LD_FILE, "the state does not begin as one; it was not saved by this version");
  std::memcpy(&h, data, sizeof h);
  if (h.vocab != c.vocab || h.dim != c.dim || h.layers != c.layers || h.heads != c.heads || h.kv_heads != c.kv_heads ||
      h.head_dim != c.head_dim)
    throw Error(LD_FILE, "the state is that of a model with another shape");
  if (h.math != static_cast<int>(options_.math))
    throw Error(LD_FILE,
                text("the state was computed in %s arithmetic, the session is in %s",
                     h.math == LD_MATH_FAST ? "fast" : "exact", options_.math == Math::fast ? "fast" : "exact"));
  if (h.length < 1 || h.length > options_.slot_length)
    throw Error(LD_FILE, text("the state has %d positions, expected 1 to %d", h.length, options_.slot_length));
  if (bytes != state_bytes(h.length))
    throw Error(LD_FILE, text("the state has %llu bytes, expected %llu for %d positions", (unsigned long long)bytes,
                              (unsigned long long)state_bytes(h.length), h.length));

  std::vector<float> k, v;
  const char* from = nullptr;
  auto read = [&](int layer) {
    if (layer == 0) from = static_cast<const char*>(data) + sizeof h;
    for (std::vector<float>* part : {&k, &v}) {
      part->resize(static_cast<size_t>(h.length) * c.kv_dim(layer));
      std::memcpy(part->data(), from, part->size() * sizeof(float));
      from += part->size() * sizeof(float);
    }
  };
  Checksum checksum;
  bool finite = true;
  for (int layer = 0; layer < c.layers; layer++) {
    read(layer);
    for (const std::vector<float>* part : {&k, &v}) {
      checksum.add(part->data(), part->size());
      finite = finite && std::all_of(part->begin(), part->end(), [](float x) { return std::isfinite(x); });
    }
  }
  if (checksum.value() != h.checksum || !finite)
    throw Error(LD_FILE, "the state is damaged: its values are not those that were saved");
  for (int layer = 0; layer < c.layers; layer++) {
    read(layer);
    const auto [ops, context, index] = layer_at(layer);
    ops->write_kv(context, index, slot, h.length, k.data(), v.data());
  }
  uint8_t* known = &known_[static_cast<size_t>(slot) * options_.slot_length];
  std::fill_n(&expected_[static_cast<size_t>(slot) * options_.slot_length], options_.slot_length, 0);
  std::fill(known, known + h.length, 1);
  std::fill(known + h.length, known + options_.slot_length, 0);
  return h.length;
}

}  // namespace ld
