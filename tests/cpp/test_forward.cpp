// A whole forward pass through the C interface on every kernel row of this processor, against the scalar row and against
// logits recorded on another processor: what a cross-compiled library must answer too. The model is a llama of two
// layers with a different type in every matrix, its bytes drawn from a fixed generator. Not here: whether the model is
// computed rightly (the Python tests compare with other implementations), speed.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "gguf_bytes.h"
#include "localdiff.h"
#include "quant/half.h"
#include "quant/types.h"
#include "test.h"

using namespace ld;
using namespace ld::test;

namespace {

constexpr int kDim = 256, kLayers = 2, kFfn = 512, kVocab = 96, kLength = 24;

struct Generator {
  uint64_t state;
  uint8_t byte() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint8_t>(state >> 56);
  }
};

// Scales that give random bytes of a type weights of about 1 / 16, and minimums that centre them.
struct Scales {
  TensorType type;
  float d, minimum;
  int at;  // of d in a block; the minimum follows it
};
constexpr Scales kScales[] = {
    {TensorType::q4_0, 0.0135f, 0, 0},         {TensorType::q4_1, 0.0135f, -0.101f, 0},
    {TensorType::q5_0, 0.0068f, 0, 0},         {TensorType::q5_1, 0.0068f, -0.105f, 0},
    {TensorType::q8_0, 0.00085f, 0, 0},        {TensorType::q4_k, 0.0003f, 0.00225f, 0},
    {TensorType::q5_k, 0.00015f, 0.00232f, 0}, {TensorType::q6_k, 0.000046f, 0, 208},
};

struct Entry {
  std::string name;
  TensorType type;
  uint64_t columns, rows;
};

std::string tensor_bytes(const Entry& entry, Generator& random) {
  const TypeTraits& traits = *type_traits(static_cast<int32_t>(entry.type));
  std::string out;
  const uint64_t values = entry.columns * entry.rows;
  if (entry.type == TensorType::f32 || entry.type == TensorType::f16 || entry.type == TensorType::bf16) {
    for (uint64_t i = 0; i < values; ++i) {
      const float centre = entry.rows == 1 ? 1.0f : 0.0f;  // norms
      const float value = centre + static_cast<float>(random.byte() - 128) / 1024.0f;
      const uint32_t bits = bits_of_float(value);
      const uint16_t half = entry.type == TensorType::f16 ? float_to_half(value) : float_to_bfloat(value);
      out.append(
          entry.type == TensorType::f32 ? reinterpret_cast<const char*>(&bits) : reinterpret_cast<const char*>(&half),
          traits.block_bytes);
    }
    return out;
  }
  for (uint64_t i = 0; i < values / traits.block * traits.block_bytes; ++i) out += static_cast<char>(random.byte());
  for (const Scales& scales : kScales) {
    if (scales.type != entry.type) continue;
    const uint16_t d = float_to_half(scales.d), minimum = float_to_half(scales.minimum);
    for (size_t i = scales.at; i < out.size(); i += traits.block_bytes) {
      memcpy(&out[i], &d, 2);
      if (scales.minimum != 0) memcpy(&out[i + 2], &minimum, 2);
    }
  }
  return out;
}

std::string model_bytes() {
  std::vector<Entry> entries = {{"token_embd.weight", TensorType::q8_0, kDim, kVocab},
                                {"output_norm.weight", TensorType::f32, kDim, 1},
                                {"output.weight", TensorType::q6_k, kDim, kVocab}};
  for (int layer = 0; layer < kLayers; ++layer) {
    const std::string at = "blk." + std::to_string(layer) + ".";
    const bool first = layer == 0;
    entries.push_back({at + "attn_norm.weight", TensorType::f32, kDim, 1});
    entries.push_back({at + "attn_q.weight", first ? TensorType::q4_k : TensorType::f32, kDim, kDim});
    entries.push_back({at + "attn_k.weight", first ? TensorType::q4_0 : TensorType::q4_1, kDim, kDim / 2});
    entries.push_back({at + "attn_v.weight", first ? TensorType::q6_k : TensorType::f16, kDim, kDim / 2});
    entries.push_back({at + "attn_output.weight", first ? TensorType::q5_0 : TensorType::q8_0, kDim, kDim});
    entries.push_back({at + "ffn_norm.weight", TensorType::f32, kDim, 1});
    entries.push_back({at + "ffn_gate.weight", first ? TensorType::q5_1 : TensorType::q4_0, kDim, kFfn});
    entries.push_back({at + "ffn_up.weight", first ? TensorType::bf16 : TensorType::q5_k, kDim, kFfn});
    entries.push_back({at + "ffn_down.weight", first ? TensorType::q4_k : TensorType::q6_k, kFfn, kDim});
  }
  Builder b(entries.size(), 9);
  b.text("general.architecture", "llama");
  b.scalar<uint32_t>("llama.embedding_length", ValueType::u32, kDim);
  b.scalar<uint32_t>("llama.block_count", ValueType::u32, kLayers);
  b.scalar<uint32_t>("llama.attention.head_count", ValueType::u32, 4);
  b.scalar<uint32_t>("llama.attention.head_count_kv", ValueType::u32, 2);
  b.scalar<uint32_t>("llama.feed_forward_length", ValueType::u32, kFfn);
  b.scalar<uint32_t>("llama.context_length", ValueType::u32, 64);
  b.scalar<float>("llama.attention.layer_norm_rms_epsilon", ValueType::f32, 1e-5f);
  b.scalar<float>("llama.rope.freq_base", ValueType::f32, 10000.0f);
  Generator random{2026};
  std::string data;
  for (const Entry& entry : entries) {
    data.append((32 - data.size() % 32) % 32, '\0');
    std::vector<uint64_t> dims = {entry.columns};
    if (entry.rows > 1) dims.push_back(entry.rows);
    b.tensor(entry.name, static_cast<int32_t>(entry.type), dims, data.size());
    data += tensor_bytes(entry, random);
  }
  data.append((32 - data.size() % 32) % 32, '\0');
  b.pad().raw("data", data, Part::content);
  return std::string(b.bytes.begin(), b.bytes.end());
}

void ok(ld_status status) {
  if (status != LD_OK) throw std::runtime_error(ld_last_error());
}

template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

Owned<ld_gguf> open_file() {
  const char* folder = getenv("TMPDIR");
  std::string path = std::string(folder ? folder : "/tmp") + "/localdiff-forward-XXXXXX";
  const int descriptor = mkstemp(path.data());
  if (descriptor < 0) throw std::runtime_error("no temporary file can be made");
  close(descriptor);
  std::ofstream(path, std::ios::binary) << model_bytes();
  ld_gguf* file;
  const ld_status status = ld_gguf_open(path.c_str(), LD_ACCESS_READ, &file);
  unlink(path.c_str());
  ok(status);
  return {file, ld_gguf_free};
}

// The model on one kernel row, and a session of it.
struct Running {
  Running(const ld_gguf* file, const char* isa, int threads, int slots) {
    ld_model_options model_options = {};
    model_options.struct_size = sizeof model_options;
    model_options.isa = isa;
    model_options.threads = threads;
    ld_model* opened;
    ok(ld_model_open(file, &model_options, &opened));
    model.reset(opened);
    ld_session_options options = {};
    options.struct_size = sizeof options;
    options.slots = slots;
    options.slot_length = kLength;
    options.threads = threads;
    ld_session* created;
    ok(ld_session_create(opened, &options, &created));
    session.reset(created);
  }
  Owned<ld_model> model{nullptr, ld_model_free};
  Owned<ld_session> session{nullptr, ld_session_free};
};

// Logits [kLength][kVocab] of the model on one kernel row.
std::vector<float> logits(const ld_gguf* file, const char* isa, int threads) {
  const Running running(file, isa, threads, 1);
  std::vector<int32_t> tokens(kLength), positions(kLength);
  for (int i = 0; i < kLength; ++i) {
    tokens[i] = (i * 37 + 11) % kVocab;
    positions[i] = i;
  }
  ld_canvas canvas = {};
  canvas.struct_size = sizeof canvas;
  canvas.tokens = tokens.data();
  canvas.length = kLength;
  canvas.score = positions.data();
  canvas.n_score = kLength;
  std::vector<float> out(static_cast<size_t>(kLength) * kVocab);
  ok(ld_session_logits(running.session.get(), &canvas, 1, out.data()));
  return out;
}

double deviation(const std::vector<float>& values) {
  double sum = 0, squares = 0;
  for (float value : values) sum += value, squares += static_cast<double>(value) * value;
  return std::sqrt(squares / values.size() - sum * sum / values.size() / values.size());
}

// Largest difference, in standard deviations of the logits.
double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(a[i]) - b[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest / deviation(a);
}

// Logits 0, 7, 14, ... of the last position by the scalar row on x86-64.
const std::vector<float> kRecorded = {0.349401265f, -0.0228418019f, -0.324546814f, 0.100350596f, 0.560767293f,
                                      -1.17629063f, -0.468746662f,  -1.60100019f,  0.744040072f, 0.341733873f,
                                      -1.07617307f, 0.194006145f,   -0.911393881f, 0.88006717f};

// Rows round inputs of a layer to 8 bits; where two rows' sums differ in the last bit, one such rounding may go the
// other way and moves the logits by some thousandths. Without one, the largest difference seen is 1e-6.
constexpr double kBudget = 0.02;

}  // namespace

TEST(every_kernel_row_gives_the_same_logits) {
  const Owned<ld_gguf> opened = open_file();
  const ld_gguf* file = opened.get();

  const std::vector<float> scalar = logits(file, "scalar", 1);
  CHECK(deviation(scalar) > 0.1 && deviation(scalar) < 100);
  std::vector<float> some;
  for (int i = 0; i < kVocab; i += 7) some.push_back(scalar[(kLength - 1) * kVocab + i]);
  const double recorded = distance(some, kRecorded);
  printf("    scalar: %.2g standard deviations from the recorded logits\n", recorded);
  if (!CHECK(some.size() == kRecorded.size() && recorded <= kBudget)) {
    for (float value : some) printf("%.9gf, ", value);
    printf("\n");
  }
  for (int i = 0; i < ld_isa_count(); ++i) {
    const char* isa = ld_isa_name(i);
    if (!ld_isa_supported(i)) {
      printf("not run here: kernel row %s\n", isa);
      continue;
    }
    const std::vector<float> one = logits(file, isa, 1), three = logits(file, isa, 3);
    CHECK(memcmp(one.data(), three.data(), one.size() * sizeof(float)) == 0);
    const double seen = distance(scalar, one);
    printf("    %s: %.2g standard deviations from the scalar row\n", isa, seen);
    CHECK(seen <= kBudget);
  }
}

// What the Python binding never does, and with memory of exactly the stated sizes.
TEST(a_guided_canvas_is_followed_by_its_companion) {
  const Owned<ld_gguf> file = open_file();
  const Running running(file.get(), nullptr, 2, 3);
  const std::vector<int32_t> tokens(kLength, 5), score = {3, 4, 11}, repeated = {5, 95}, bias_token = {0, 95};
  const std::vector<float> bias = {1.0f, -2.0f};
  const std::vector<uint32_t> allowed(3 * (kVocab + 31) / 32, ~0u);
  std::vector<float> raw(3 * kVocab), raw_companion(3 * kVocab);
  std::vector<int32_t> token(3, -1);
  std::vector<ld_canvas> canvases(3);
  for (int i = 0; i < 3; ++i) {
    ld_canvas& canvas = canvases[i];
    canvas.struct_size = sizeof(ld_canvas);
    canvas.slot = i;
    canvas.tokens = tokens.data();
    canvas.length = kLength;
    canvas.score = score.data();
    canvas.n_score = 3;
  }
  canvases[1].guidance = 1;
  canvases[1].token = token.data();
  canvases[1].logits = raw.data();
  canvases[1].allowed = allowed.data();
  canvases[1].repetition_penalty = 2;
  canvases[1].repeated = repeated.data();
  canvases[1].n_repeated = 2;
  canvases[1].bias_token = bias_token.data();
  canvases[1].bias = bias.data();
  canvases[1].n_bias = 2;
  canvases[2].logits = raw_companion.data();
  const auto refused = [&](int count, const char* why) {
    CHECK_EQ(ld_session_propose(running.session.get(), canvases.data(), count), LD_INVALID);
    CHECK(strstr(ld_last_error(), why) != nullptr);
  };
  ok(ld_session_propose(running.session.get(), canvases.data(), 3));
  CHECK(raw == raw_companion);
  for (int i = 0; i < 3; ++i) {  // both say the same, so guidance changes nothing
    std::vector<float> own(raw.begin() + i * kVocab, raw.begin() + (i + 1) * kVocab);
    for (int id : repeated) own[id] = own[id] > 0 ? own[id] / 2 : own[id] * 2;
    for (int k = 0; k < 2; ++k) own[bias_token[k]] += bias[k];
    CHECK_EQ(token[i], static_cast<int32_t>(std::max_element(own.begin(), own.end()) - own.begin()));
  }
  refused(2, "canvas 1: guidance needs its unconditional companion as the next canvas of the call");
  canvases[2].token = token.data();
  refused(3, "canvas 1: guidance leaves the companion without results of its own");
  canvases[2].token = nullptr;
  canvases[2].guidance = 1;
  refused(3, "canvas 1: guidance cannot come from a canvas that is guided itself");
  canvases[2].guidance = 0;
  canvases[2].n_score = 2;
  refused(3, "canvas 2: the companion scores 2 positions, expected 3");
  canvases[2].n_score = 3;
  canvases[1].repeated = nullptr;
  refused(3, "canvas 1: repeated is NULL");
  canvases[1].repeated = repeated.data();
  canvases[1].bias = nullptr;
  refused(3, "canvas 1: bias_token or bias is NULL");
  canvases[1].bias = bias.data();
  canvases[1].n_bias = -1;
  refused(3, "canvas 1: a count is negative");
  canvases[1].n_bias = 2;
  ok(ld_session_propose(running.session.get(), canvases.data(), 3));
}
