// The C interface: argument checks, struct versions, and the one place where exceptions become a status.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "automaton.h"
#include "error.h"
#include "localdiff.h"
#include "model.h"
#include "plugin.h"
#include "quant/quantize.h"
#include "scoring.h"
#include "session.h"

#ifndef LD_VERSION
#error "LD_VERSION comes from the build"
#endif

struct ld_gguf {
  std::unique_ptr<const ld::Gguf> file;
};

struct ld_model {
  std::unique_ptr<const ld::Model> model;
};

struct ld_session {
  std::unique_ptr<ld::Session> session;
  std::vector<ld_canvas> canvases;  // this library's copy of the caller's structs
  std::atomic<bool> busy{false};
};

namespace {

using ld::Error;
using ld::text;

thread_local char last_error[1024] = "";

ld_status fail(ld_status status, const char* message) {
  snprintf(last_error, sizeof last_error, "%s", message);
  return status;
}

template <class Body>
ld_status guard(Body&& body) noexcept {
  try {
    body();
    return LD_OK;
  } catch (const Error& error) {
    return fail(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(LD_MEMORY, "not enough memory");
  } catch (const std::exception& error) {
    return fail(LD_INTERNAL, error.what());
  } catch (...) {
    return fail(LD_INTERNAL, "unknown exception");
  }
}

void require(bool good, const char* message) {
  if (!good) throw Error(LD_INVALID, message);
}

// The size that a caller says its struct has.
template <class Struct>
uint32_t size_of(const char* name, const Struct& from) {
  const uint32_t size = from.struct_size;
  if (size < sizeof(uint32_t) || size > 4096)
    throw Error(LD_INVALID, text("%s.struct_size is %u, expected sizeof(%s) = %zu", name, size, name, sizeof(Struct)));
  return size;
}

// The struct of a caller that may be older (shorter, the rest is zero) or newer (longer, the extra bytes must be zero).
template <class Struct>
Struct read_struct(const char* name, const Struct* from) {
  Struct to{};
  if (from == nullptr) return to;
  const uint32_t size = size_of(name, *from);
  memcpy(&to, from, std::min<size_t>(size, sizeof(Struct)));
  const auto* bytes = reinterpret_cast<const unsigned char*>(from);
  if (std::any_of(bytes + std::min<size_t>(size, sizeof(Struct)), bytes + size, [](unsigned char b) { return b != 0; }))
    throw Error(LD_INVALID, text("%s has fields that this library (%s) does not know", name, LD_VERSION));
  return to;
}

template <class Struct>
void write_struct(const char* name, Struct from, Struct* to) {
  require(to != nullptr, "the result pointer is NULL");
  const uint32_t size = size_of(name, *to);
  from.struct_size = size;
  memcpy(to, &from, std::min<size_t>(size, sizeof(Struct)));
}

// Holds the session for one call; a second caller is refused.
class Owner {
 public:
  explicit Owner(ld_session* session) : session_(session) {
    require(session != nullptr, "session is NULL");
    if (session->busy.exchange(true, std::memory_order_acquire))
      throw Error(LD_BUSY, "the session is in use by another thread; give each thread a session of its own");
  }
  ~Owner() { session_->busy.store(false, std::memory_order_release); }
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;

 private:
  ld_session* session_;
};

// Copies the caller's canvases, whose stride is their own struct_size, into structs of this library.
const ld_canvas* read_canvases(std::vector<ld_canvas>* to, const ld_canvas* canvases, int32_t count) {
  require(canvases != nullptr && count >= 1, "no canvases");
  to->clear();
  const auto* bytes = reinterpret_cast<const char*>(canvases);
  const uint32_t stride = canvases->struct_size;
  for (int32_t i = 0; i < count; i++) {
    ld_canvas canvas = read_struct("ld_canvas", reinterpret_cast<const ld_canvas*>(bytes + size_t{stride} * i));
    require(canvas.struct_size == stride, "the canvases of one call differ in struct_size");
    to->push_back(canvas);
  }
  return to->data();
}

// The same where a step allocates nothing: as many canvases as the session has slots.
const ld_canvas* read_canvases(ld_session* session, const ld_canvas* canvases, int32_t count) {
  require(static_cast<size_t>(std::max(count, 0)) <= session->canvases.capacity(),
          "more canvases than the session has slots");
  return read_canvases(&session->canvases, canvases, count);
}

const ld::Tensor& tensor_at(const ld_gguf* file, uint64_t index) {
  require(file != nullptr, "file is NULL");
  const auto tensors = file->file->tensors();
  if (index >= tensors.size())
    throw Error(LD_INVALID,
                text("tensor %llu does not exist, the file has %zu", (unsigned long long)index, tensors.size()));
  return tensors[index];
}

using OpenDevice = std::unique_ptr<ld::Device, void (*)(ld::Device*)>;

void measure_peak(const ld::Ops& ops, const ld::DeviceOptions& options, double seconds, ld_peak* out) {
  require(seconds >= 0 && seconds <= 3600, "seconds must be 0 to 3600");
  const OpenDevice device(ops.open(options), ops.close);
  const ld::Peak peak = ops.measure_peak(device.get(), seconds > 0 ? seconds : 0.3);
  write_struct<ld_peak>("ld_peak",
                        {0, peak.threads, peak.int8_gops, peak.f32_gflops, peak.memory_gbps, peak.bf16_gflops}, out);
}

}  // namespace

extern "C" {

uint32_t ld_abi(void) { return LD_ABI; }
const char* ld_version(void) { return LD_VERSION; }
const char* ld_last_error(void) { return last_error; }

int32_t ld_isa_count(void) {
  int count = 0;
  ld::isa_rows(&count);
  return count;
}

const char* ld_isa_name(int32_t index) {
  int count = 0;
  const ld::IsaRow* rows = ld::isa_rows(&count);
  return index >= 0 && index < count ? rows[index].name : nullptr;
}

int32_t ld_isa_supported(int32_t index) {
  int count = 0;
  const ld::IsaRow* rows = ld::isa_rows(&count);
  return index >= 0 && index < count && rows[index].supported() ? 1 : 0;
}

ld_status ld_device_load(const char* path) {
  return guard([&] {
    require(path != nullptr, "path is NULL");
    ld::ops_of(path);
  });
}

ld_status ld_device_memory(const char* path, uint64_t* free, uint64_t* total) {
  return guard([&] {
    require(path != nullptr && free != nullptr && total != nullptr, "path or a result pointer is NULL");
    const ld::Ops& ops = ld::ops_of(path);
    const OpenDevice device(ops.open({nullptr, 0, true}), ops.close);
    size_t left, all;
    ops.memory(device.get(), &left, &all);
    *free = left;
    *total = all;
  });
}

ld_status ld_gguf_open(const char* path, int32_t access, ld_gguf** out) {
  return guard([&] {
    require(path != nullptr && out != nullptr, "path or the result pointer is NULL");
    require(access == LD_ACCESS_MAP || access == LD_ACCESS_READ, "access must be LD_ACCESS_MAP or LD_ACCESS_READ");
    auto file = std::make_unique<ld_gguf>();
    file->file = ld::Gguf::open(path, access == LD_ACCESS_MAP ? ld::Gguf::Access::map : ld::Gguf::Access::read);
    *out = file.release();
  });
}

void ld_gguf_free(ld_gguf* file) { delete file; }

uint64_t ld_gguf_metadata_count(const ld_gguf* file) { return file == nullptr ? 0 : file->file->metadata().size(); }
uint64_t ld_gguf_tensor_count(const ld_gguf* file) { return file == nullptr ? 0 : file->file->tensors().size(); }

ld_status ld_gguf_metadata(const ld_gguf* file, uint64_t index, ld_metadata* out) {
  return guard([&] {
    require(file != nullptr, "file is NULL");
    const auto entries = file->file->metadata();
    if (index >= entries.size())
      throw Error(LD_INVALID,
                  text("metadata %llu does not exist, the file has %zu", (unsigned long long)index, entries.size()));
    const ld::Metadata& entry = entries[index];
    const bool array = entry.type == ld::ValueType::array;
    write_struct<ld_metadata>("ld_metadata",
                              {0, static_cast<int32_t>(entry.type), array ? static_cast<int32_t>(entry.element) : -1,
                               entry.key.data(), entry.key.size(), entry.count, entry.data.data(), entry.data.size()},
                              out);
  });
}

ld_status ld_gguf_tensor(const ld_gguf* file, uint64_t index, ld_tensor* out) {
  return guard([&] {
    const ld::Tensor& tensor = tensor_at(file, index);
    ld_tensor result{0,
                     static_cast<int32_t>(tensor.type->type),
                     tensor.type->name,
                     tensor.name.data(),
                     tensor.name.size(),
                     tensor.n_dims,
                     0,
                     {},
                     tensor.data.data(),
                     tensor.data.size()};
    std::copy(std::begin(tensor.dims), std::end(tensor.dims), result.dims);
    write_struct("ld_tensor", result, out);
  });
}

ld_status ld_gguf_decode(const ld_gguf* file, uint64_t index, uint64_t first, uint64_t rows, float* out) {
  return guard([&] {
    const ld::Tensor& tensor = tensor_at(file, index);
    require(out != nullptr, "out is NULL");
    if (tensor.type->decode == nullptr)
      throw Error(LD_INVALID, std::string(tensor.name) + ": type " + tensor.type->name + " cannot be decoded yet");
    if (first > tensor.rows() || rows > tensor.rows() - first)
      throw Error(LD_INVALID, text("rows [%llu, +%llu) lie outside the tensor's %llu rows", (unsigned long long)first,
                                   (unsigned long long)rows, (unsigned long long)tensor.rows()));
    const size_t row_bytes = tensor.columns() / tensor.type->block * tensor.type->block_bytes;
    tensor.type->decode(tensor.data.data() + first * row_bytes, out, rows * tensor.columns());
  });
}

int32_t ld_quantize_supported(int32_t type) {
  const ld::TypeTraits* traits = ld::type_traits(type);
  return traits != nullptr && ld::can_quantize(traits->type) ? 1 : 0;
}

ld_status ld_quantize_rows(int32_t type, const float* from, uint64_t rows, uint64_t columns,
                           const ld_quantize_options* options, void* out, uint64_t out_bytes) {
  return guard([&] {
    const ld_quantize_options o = read_struct("ld_quantize_options", options);
    require(from != nullptr && out != nullptr, "from or out is NULL");
    require(o.threads >= 0 && o.threads <= 1024, "threads must be 0 to 1024");
    const ld::TypeTraits* traits = ld::type_traits(type);
    if (traits == nullptr) throw Error(LD_INVALID, text("tensor type %d does not exist", type));
    require(columns < (1ull << 46) && rows < (1ull << 46) / (columns + 1), "rows * columns is out of range");
    const uint64_t bytes = rows * (columns / traits->block) * traits->block_bytes;
    if (out_bytes != bytes)
      throw Error(LD_INVALID,
                  text("out_bytes is %llu, expected %llu", (unsigned long long)out_bytes, (unsigned long long)bytes));
    ld::Pool pool(o.threads);
    ld::quantize_rows(*traits, from, rows, columns, o.importance, pool, static_cast<uint8_t*>(out));
  });
}

ld_status ld_automaton_create(const ld_automaton_table* table, ld_automaton** out) {
  return guard([&] {
    require(table != nullptr && out != nullptr, "table or the result pointer is NULL");
    *out = new ld_automaton{ld::Automaton(read_struct("ld_automaton_table", table))};
  });
}

void ld_automaton_free(ld_automaton* automaton) { delete automaton; }

ld_status ld_automaton_fits(const ld_automaton* automaton, int32_t state, const int32_t* tokens, int32_t length,
                            int32_t left, int32_t* fits) {
  return guard([&] {
    require(automaton != nullptr && fits != nullptr, "automaton or the result pointer is NULL");
    const ld::Stretch stretch = automaton->automaton.stretch(state, tokens, length, left);
    *fits = ld::Reach(automaton->automaton, stretch).possible();
  });
}

ld_status ld_model_open(const ld_gguf* file, const ld_model_options* options, ld_model** out) {
  return guard([&] {
    require(file != nullptr && out != nullptr, "file or the result pointer is NULL");
    const ld_model_options o = read_struct("ld_model_options", options);
    require(o.threads >= 0 && o.threads <= 1024, "threads must be 0 to 1024");
    require(o.plan == 0 || o.plan == 1, "plan must be 0 or 1");
    require(o.n_adapters >= 0 && o.n_adapters <= 64, "n_adapters must be 0 to 64");
    require(o.n_adapters == 0 || o.adapters != nullptr, "adapters is NULL");
    std::vector<ld::Adapter> adapters;
    for (int32_t i = 0; i < o.n_adapters; i++) {
      require(o.adapters[i] != nullptr, "an adapter is NULL");
      adapters.push_back({o.adapters[i]->file.get(), o.adapter_scales == nullptr ? 1.0f : o.adapter_scales[i]});
    }
    const ld::ModelOptions options_of{{o.isa, o.threads, o.plan != 0}, o.gpu_layers};
    auto model = std::make_unique<ld_model>();
    model->model = std::make_unique<ld::Model>(*file->file, ld::ops_of(o.device), options_of, adapters);
    *out = model.release();
  });
}

void ld_model_free(ld_model* model) { delete model; }

ld_status ld_model_get_info(const ld_model* model, ld_model_info* out) {
  return guard([&] {
    require(model != nullptr, "model is NULL");
    const ld::Model& m = *model->model;
    const ld::ModelConfig& c = m.config();
    write_struct<ld_model_info>("ld_model_info",
                                {0, c.vocab, c.dim, c.layers, c.heads, c.kv_heads, c.head_dim, c.ffn_dim,
                                 c.context_length, m.parameters(), m.weight_bytes(), c.arch.c_str(), m.isa().c_str(),
                                 m.skipped().c_str(), c.lengths, m.feedback().ffn.width > 0, m.gpu_layers()},
                                out);
  });
}

ld_status ld_model_get_memory(const ld_model* model, ld_model_memory* out) {
  return guard([&] {
    require(model != nullptr, "model is NULL");
    const ld::Model& m = *model->model;
    ld_model_memory memory{};
    for (const ld::Part& part : m.parts()) {
      const ld::Footprint f = part.ops->footprint(part.device);
      if (part.ops == &ld::cpu_ops())
        memory = {0, 0, f.weights, f.tables, f.packing, 0};
      else
        memory.device_weights = f.weights;
    }
    write_struct("ld_model_memory", memory, out);
  });
}

ld_status ld_session_plan(const ld_model* model, const ld_session_options* options, uint64_t* bytes) {
  return guard([&] {
    require(model != nullptr && bytes != nullptr, "model or the result pointer is NULL");
    const ld_session_options o = read_struct("ld_session_options", options);
    *bytes = ld::Session::plan(*model->model, ld::Session::resolve(*model->model, o));
  });
}

ld_status ld_session_plan_device(const ld_model* model, const ld_session_options* options, uint64_t* bytes) {
  return guard([&] {
    require(model != nullptr && bytes != nullptr, "model or the result pointer is NULL");
    const ld_session_options o = read_struct("ld_session_options", options);
    *bytes = ld::Session::plan_device(*model->model, ld::Session::resolve(*model->model, o));
  });
}

ld_status ld_session_create(const ld_model* model, const ld_session_options* options, ld_session** out) {
  return guard([&] {
    require(model != nullptr && out != nullptr, "model or the result pointer is NULL");
    const ld::SessionOptions o = ld::Session::resolve(*model->model, read_struct("ld_session_options", options));
    auto session = std::make_unique<ld_session>();
    session->session = std::make_unique<ld::Session>(*model->model, o);
    session->canvases.reserve(o.slots);
    *out = session.release();
  });
}

void ld_session_free(ld_session* session) { delete session; }

ld_status ld_session_propose(ld_session* session, ld_canvas* canvases, int32_t n_canvases) {
  return guard([&] {
    Owner owner(session);
    session->session->propose(read_canvases(session, canvases, n_canvases), n_canvases);
  });
}

ld_status ld_session_logits(ld_session* session, const ld_canvas* canvases, int32_t n_canvases, float* out) {
  return guard([&] {
    require(out != nullptr, "out is NULL");
    Owner owner(session);
    session->session->logits(read_canvases(session, canvases, n_canvases), n_canvases, out);
  });
}

ld_status ld_session_lengths(ld_session* session, int32_t slot, const int32_t* tokens, int32_t length, float* out) {
  return guard([&] {
    require(out != nullptr, "out is NULL");
    Owner owner(session);
    session->session->lengths(slot, tokens, length, out);
  });
}

ld_status ld_logits_propose(int32_t vocab, ld_canvas* canvases, int32_t n_canvases) {
  return guard([&] {
    std::vector<ld_canvas> copies;
    ld::propose_logits(vocab, read_canvases(&copies, canvases, n_canvases), n_canvases);
  });
}

void ld_session_cancel(ld_session* session) {
  if (session != nullptr) session->session->cancel();
}

ld_status ld_session_timings(const ld_session* session, ld_timings* out) {
  return guard([&] {
    require(session != nullptr, "session is NULL");
    const ld::Timings& t = session->session->timings();
    write_struct<ld_timings>("ld_timings",
                             {0, session->session->threads(), t.forwards, t.rows,
                              t.linear + t.attention + t.head + t.other, t.linear, t.attention, t.head, t.other},
                             out);
  });
}

ld_status ld_session_observe(ld_session* session, int32_t on) {
  return guard([&] {
    require(on == 0 || on == 1, "on must be 0 or 1");
    Owner owner(session);
    session->session->observe(on != 0);
  });
}

uint64_t ld_session_observation_count(const ld_session* session) {
  return session == nullptr ? 0 : session->session->observations().size();
}

ld_status ld_session_observation(const ld_session* session, uint64_t index, ld_observation* out) {
  return guard([&] {
    require(session != nullptr, "session is NULL");
    const auto& observations = session->session->observations();
    if (index >= observations.size())
      throw Error(LD_INVALID, text("observation %llu does not exist, there are %zu", (unsigned long long)index,
                                   observations.size()));
    const ld::Multiplied& tensor = session->session->observed_tensor(index);
    const auto& found = observations[index];
    write_struct<ld_observation>("ld_observation",
                                 {0, static_cast<int32_t>(tensor.matrices.size()), static_cast<uint64_t>(tensor.k),
                                  tensor.name.c_str(), found.squares.data(), found.rows.data()},
                                 out);
  });
}

ld_status ld_session_state_bytes(const ld_session* session, int32_t length, uint64_t* bytes) {
  return guard([&] {
    require(session != nullptr && bytes != nullptr, "session or the result pointer is NULL");
    *bytes = session->session->state_bytes(length);
  });
}

ld_status ld_session_save(ld_session* session, int32_t slot, int32_t length, void* out, uint64_t out_bytes) {
  return guard([&] {
    require(out != nullptr, "out is NULL");
    Owner owner(session);
    session->session->save(slot, length, out, out_bytes);
  });
}

ld_status ld_session_load(ld_session* session, int32_t slot, const void* data, uint64_t bytes, int32_t* length) {
  return guard([&] {
    require(data != nullptr && length != nullptr, "data or the result pointer is NULL");
    Owner owner(session);
    *length = session->session->load(slot, data, bytes);
  });
}

ld_status ld_measure_peak(const char* isa, int32_t threads, double seconds, ld_peak* out) {
  return guard([&] {
    require(threads >= 0 && threads <= 1024, "threads must be 0 to 1024");
    measure_peak(ld::cpu_ops(), {isa, threads}, seconds, out);
  });
}

ld_status ld_measure_device_peak(const char* path, double seconds, ld_peak* out) {
  return guard([&] {
    require(path != nullptr, "path is NULL");
    measure_peak(ld::ops_of(path), {nullptr, 0}, seconds, out);
  });
}

}  // extern "C"
