// LoRA adapters in GGUF files (general.type = adapter, adapter.type = lora), as llama.cpp writes them: for a matrix W [n, k]
// the file holds W.lora_a [rank, k] and W.lora_b [n, rank], and the adapted layer is W x + scale * alpha / rank * B (A x).
// Several adapters of one matrix are one: the rows of their A and the columns of their B side by side.
//
// Not here: multiplying (transformer.cpp), adapters of embeddings, heads and experts (refused).
#pragma once

#include <set>
#include <span>
#include <string>
#include <vector>

#include "gguf.h"

namespace ld {

struct Adapter {
  const Gguf* file;
  float scale;
};

struct Factors {
  int rank = 0;          // 0: no adapter changes the matrix
  std::vector<float> a;  // [rank, k]
  std::vector<float> b;  // [n, rank], scaled
};

class Adapters {
 public:
  // Throws Error(LD_FILE) where a file is no LoRA adapter for `arch`, or holds something else than pairs of factors.
  Adapters(std::span<const Adapter> adapters, const std::string& arch);

  // The rank that all adapters together give matrix `name`, whose shape they must fit.
  int rank(const std::string& name, int n, int k);
  Factors factors(const std::string& name, int n, int k) const;
  // After rank() was asked for every matrix that can be adapted.
  void refuse_unused() const;

 private:
  struct Pair {
    const Tensor *a, *b;
    double scale;
  };
  std::vector<Pair> pairs(const std::string& name) const;

  std::span<const Adapter> adapters_;
  std::set<std::string> used_;
};

}  // namespace ld
