// Where copies of weights in another form lie, and products that read them. A session asks for a copy once and remembers the
// answer: graphs that it recorded keep reading what they read. Nothing is allocated or waited for while a step is recorded.
#include "cuda/context.h"
#include "cuda/forms.h"

namespace ld {
namespace {

// Of the parts that are made in scratch; a part stays in the cache of a large GPU until it is multiplied.
#ifdef LD_CUDA_EMULATED
constexpr size_t kPartBytes = 8 << 10;  // so that small models have parts
#else
constexpr size_t kPartBytes = size_t{32} << 20;
#endif
constexpr int kPartColumns = 128;  // parts of a matrix are multiples of it: whole tiles

// What one product reads: columns [column, column + w.n) of experts [expert, expert + experts), at data[e] or, where that
// is null, `step` bytes apart from w.data on.
struct FormPart {
  cuda::Matrix w;
  const uint8_t* const* data;
  size_t step;
  int expert, experts, column;
};

size_t form_row_bytes(TensorType form, size_t k) { return form == TensorType::bf16 ? k * sizeof(uint16_t) : k; }

cuda::Matrix matrix_of(TensorType form, const uint8_t* data, int n, int k) {
  return {form, data, n, k, form_row_bytes(form, k)};
}

void make(Context* c, TensorType form, const cuda::Source& source, uint8_t* to) {
  const size_t step = form_bytes(form, source.columns, source.w.k);
  if (form == TensorType::i8) return cuda::fold(c->stream, source, to, step);
  if (form == TensorType::bf16) return cuda::round(c->stream, source, to, step);
  refuse(LD_INTERNAL, "weights have no such form");
}

// The copy of the weights, null where parts are made for every product. Sessions ask once, so that what they record and what
// they launch read the same.
const Memory* copy_of(Context* c, const Weight* first, TensorType form, const cuda::Source& source) {
  const auto known = c->copies.find(first);
  if (known != c->copies.end()) return known->second.get();
  if (c->recording != nullptr) return nullptr;  // no time to take memory
  const size_t bytes = form_bytes(form, source.columns, source.w.k) * source.experts;
  std::shared_ptr<Memory>& copy = c->copies[first];
  copy = c->device->copies.find_or_make(first, form, bytes, [&](Memory& memory) {
    make(c, form, source, memory.data());
    finish(c);  // other streams read it
  });
  return copy.get();
}

// Calls use(part) for the parts of a weight, or of experts that lie at `data`.
template <class Use>
void for_parts(Context* c, const Weight* first, const uint8_t* const* data, int experts, Use use) {
  const cuda::Matrix& w = first->matrix;
  if (!c->form || cuda::is_float(w.type)) return use(FormPart{w, data, 0, 0, experts, 0});
  const size_t whole = form_bytes(*c->form, w.n, w.k), one = form_bytes(*c->form, 1, w.k);
  if (const Memory* copy = copy_of(c, first, *c->form, {w, data, 0, w.n, experts}))
    return use(FormPart{matrix_of(*c->form, copy->data(), w.n, w.k), nullptr, whole, 0, experts, 0});
  const size_t room = c->layout.form_bytes;
  const int at_a_time = static_cast<int>(std::min<size_t>(std::max<size_t>(room / whole, 1), experts));
  int columns = static_cast<int>(std::min<size_t>(room / one, w.n));
  if (columns < w.n && columns > kPartColumns) columns -= columns % kPartColumns;
  for (int expert = 0; expert < experts; expert += at_a_time) {
    const int count = std::min(at_a_time, experts - expert);
    for (int column = 0; column < w.n; column += columns) {
      const int width = std::min(columns, w.n - column);
      make(c, *c->form, {w, data == nullptr ? nullptr : data + expert, column, width, count}, c->layout.form);
      use(FormPart{matrix_of(*c->form, c->layout.form, width, w.k), nullptr, form_bytes(*c->form, width, w.k), expert,
                   count, column});
    }
  }
}

cuda::Product part_of(cuda::Product product, const FormPart& part) {
  product.w = part.w;
  product.y += part.column;
  if (product.bias != nullptr) product.bias += part.column;
  return product;
}

// Whether a library has multiplied.
bool multiplied_by_library(Context* c, const cuda::Product& p, int rows) {
  cuda::Blas* blas = c->device->blas.get();
  if (blas == nullptr || p.form != cuda::Form::bfloat16) return false;
  const cuda::BlasProduct product{reinterpret_cast<const uint16_t*>(p.w.data),
                                  p.w.n,
                                  p.w.k,
                                  reinterpret_cast<const uint16_t*>(p.split.words),
                                  cuda::split_blocks(p.w.k) * cuda::kSplitBlock,
                                  p.bias,
                                  p.y,
                                  p.y_stride,
                                  p.add};
  const bool taken = blas->multiply(c->stream, product, rows, c->layout.workspace);
  if (!taken && c->device->library_only)
    refuse(LD_INVALID, text("%s takes no product of %d values by %d columns; LOCALDIFF_CUDA_PRODUCTS=bfloat16 leaves it "
                            "to the own kernel", blas->name().c_str(), p.w.k, p.w.n));
  return taken;
}

}  // namespace

std::optional<TensorType> session_form(const Device& device, Math math) {
  if (device.cores == Cores::bfloat16) return TensorType::bf16;
  if (math == Math::fast) return TensorType::i8;
  return std::nullopt;
}

size_t form_bytes(TensorType form, size_t n, size_t k) {
  constexpr size_t kLine = 16;  // that of experts begin with
  if (form == TensorType::i8) {
    return (n * k + (k + cuda::kGroup - 1) / cuda::kGroup * n * sizeof(float) + kLine - 1) / kLine * kLine;
  }
  if (form == TensorType::bf16) return n * form_row_bytes(form, k);
  refuse(LD_INTERNAL, "weights have no such form");
}

size_t form_scratch(std::optional<TensorType> form, size_t most_n, size_t most_k) {
  if (!form) return 0;
  return std::min(std::max(kPartBytes, form_bytes(*form, 1, most_k)), form_bytes(*form, most_n, most_k));
}

std::shared_ptr<Memory> Copies::take(size_t bytes) const {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "being asked for its memory");
  if (free < bytes || free - bytes < total / kLeftFree) return nullptr;
  try {
    return std::make_shared<Memory>(bytes);
  } catch (const Failure&) {  // free, but not in one piece
    return nullptr;
  }
}

void Copies::forget(const Weight* first) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto each = copies_.begin(); each != copies_.end();)
    each = each->first.first == first ? copies_.erase(each) : std::next(each);
}

void Copies::make_room(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "being asked for its memory");
  if (free >= bytes) return;
  for (auto each = copies_.begin(); each != copies_.end();)
    each = each->second.use_count() <= 1 ? copies_.erase(each) : std::next(each);
}

size_t Copies::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t bytes = 0;
  for (const auto& each : copies_)
    if (each.second != nullptr) bytes += each.second->bytes();
  return bytes;
}

void multiply(Context* c, const Weight* weight, const cuda::Product& product, int rows) {
  for_parts(c, weight, nullptr, 1, [&](const FormPart& part) {
    const cuda::Product of_part = part_of(product, part);
    if (!multiplied_by_library(c, of_part, rows)) cuda::multiply(c->stream, of_part, rows);
  });
}

void multiply_experts(Context* c, const Weight* const* weights, const cuda::ExpertProduct& product, int most_rows) {
  for_parts(c, weights[0], product.data, product.experts, [&](const FormPart& part) {
    cuda::multiply_experts(
        c->stream,
        {part_of(product.common, part), part.data, part.step, product.begin + part.expert, product.pick, part.experts},
        most_rows);
  });
}

}  // namespace ld
