// Where the keys and values of a session live. One Kv per layer, as layers may differ in their heads: float32, indexed by
// position, so that a step which recomputes some rows writes them in place and every cache policy is a choice of rows.
//
// Per (slot, kv head): keys in panels of kKeyPanel positions, [panel][head_dim][kKeyPanel], so that q . k over a
// panel is a product with unit stride; values [position][padded head_dim]. Memory starts as zeros. Not here: who sees
// what (intervals of RowInfo), rotation.
#pragma once

#include <cstddef>

namespace ld {

constexpr int kKeyPanel = 32;    // positions
constexpr int kValueAlign = 16;  // floats of a value row

constexpr int padded_head_dim(int head_dim) { return (head_dim + kValueAlign - 1) / kValueAlign * kValueAlign; }

struct Kv {
  float* keys = nullptr;
  float* values = nullptr;
  int kv_heads = 0, head_dim = 0;
  size_t length = 0;  // of a slot in positions, whole panels

  static size_t padded_length(int slot_length) {
    return (static_cast<size_t>(slot_length) + kKeyPanel - 1) / kKeyPanel * kKeyPanel;
  }
  size_t head(int slot, int kv_head) const { return static_cast<size_t>(slot) * kv_heads + kv_head; }
  float* head_keys(int slot, int kv_head) const { return keys + head(slot, kv_head) * length * head_dim; }
  float* head_values(int slot, int kv_head) const {
    return values + head(slot, kv_head) * length * padded_head_dim(head_dim);
  }
  // The first of a place's keys, each kKeyPanel after the one before, and of its values.
  float* key(int slot, int kv_head, size_t place) const {
    return head_keys(slot, kv_head) + place / kKeyPanel * kKeyPanel * head_dim + place % kKeyPanel;
  }
  float* value(int slot, int kv_head, size_t place) const {
    return head_values(slot, kv_head) + place * padded_head_dim(head_dim);
  }
};

}  // namespace ld
