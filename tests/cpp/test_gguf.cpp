// The GGUF reader: what it gives for a right file, and that wrong ones are refused at the right byte for little memory.
// Wrong files are one field away from small_model(), one class of known attacks each (T2), all numbers of all counts
// (T2), cut and flipped files (T3), files that claim much more than they hold (T4), and memory that runs out (T5).
// Files by path are in test_file.cpp.
#include <atomic>
#include <new>
#include <random>

#include "error.h"
#include "gguf_bytes.h"
#include "test.h"

// Counts what the program asks for, so that a test can bound what the reader takes for a refused file. Not inlined, for
// compilers warn about a free() that they see beside a new.
static std::atomic<uint64_t> allocated{0};
static std::atomic<int64_t> allocations_left{INT64_MAX};  // the one after the last of them fails

[[gnu::noinline]] void* operator new(size_t size) {
  allocated += size;
  void* memory = allocations_left-- > 0 ? malloc(size) : nullptr;
  if (memory != nullptr) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { free(memory); }

using namespace ld;
using namespace ld::test;

namespace {

constexpr uint64_t kMostMemory = 64 << 20;  // for a refused file

// Parses a copy that ends exactly where its allocation ends, so that sanitizers notice reads beyond it. Returns the
// refusal, "" for an accepted file.
std::string parse(const std::vector<uint8_t>& bytes) {
  std::unique_ptr<uint8_t[]> copy(new uint8_t[bytes.size()]);
  std::copy(bytes.begin(), bytes.end(), copy.get());
  const uint64_t before = allocated;
  try {
    use_everything(*Gguf::parse({copy.get(), bytes.size()}));
    return "";
  } catch (const Error& error) {
    CHECK(allocated - before < kMostMemory);
    CHECK_EQ(error.status(), LD_FILE);
    return error.what();
  }
}

void refused(const Builder& file, const std::string& part, const char* name, int line) {
  const std::string answer = parse(file.bytes);
  if (answer.find(part) == std::string::npos) fail(name, line, "says \"" + answer + "\", expected \"" + part + "\"");
}

#define REFUSED(file, part) refused(file, part, __FILE__, __LINE__)

std::string at(const Builder& file, const char* label, size_t more = 0) {
  return " at byte " + std::to_string(file.field(label).at + more) + " ";
}

// small_model() with the bytes of one field replaced.
template <class T>
Builder changed(const char* label, T value) {
  Builder file = small_model();
  memcpy(file.bytes.data() + file.field(label).at, &value, sizeof value);
  return file;
}

// One metadata item and no tensors.
template <class F>
Builder single(F add) {
  Builder file(0, 1);
  add(file);
  file.pad();
  return file;
}

}  // namespace

TEST(small_model_is_read) {
  const Builder built = small_model();
  CHECK_EQ(parse(built.bytes), "");
  const auto file = Gguf::parse(built.bytes);
  CHECK_EQ(file->metadata().size(), 18u);
  CHECK_EQ(file->tensors().size(), 4u);
  const Tensor* bias = file->tensor("blk.0.attn_q.bias");
  REQUIRE(bias != nullptr);
  CHECK_EQ(bias->n_dims, 4);
  CHECK_EQ(bias->columns(), 16u);
  CHECK_EQ(bias->rows(), 2u);
  CHECK_EQ(std::string(bias->type->name), "F16");
  CHECK_EQ(bias->data.size(), 64u);
  CHECK_EQ(bias->data.data() - built.bytes.data(), static_cast<ptrdiff_t>(built.field("data").at + 736));
  CHECK(file->tensor("blk.0.attn_q") == nullptr && file->tensor("") == nullptr && file->tensor("zzz") == nullptr);
  CHECK(file->find("x.u9") == nullptr);
  const Metadata* tokens = file->find("x.tokens");
  REQUIRE(tokens != nullptr);
  CHECK(tokens->type == ValueType::array && tokens->element == ValueType::string);
  CHECK_EQ(tokens->count, 4u);
  CHECK_EQ(tokens->data.size(), 4 * 8 + 0 + 1 + 4 + 4u);
  CHECK_EQ(file->find("x.none")->count, 0u);
  CHECK_EQ(file->find("x.empty")->data.size(), 0u);
  Builder second = small_model();
  second.bytes[4] = 2;
  CHECK_EQ(parse(second.bytes), "");
}

TEST(scalars_by_key) {
  const Builder built = small_model();
  const auto file = Gguf::parse(built.bytes);
  CHECK_EQ(file->integer("x.u8"), 200u);
  CHECK_EQ(file->integer("x.u16"), 60000u);
  CHECK_EQ(file->integer("x.i16"), 30000u);
  CHECK_EQ(file->integer("x.u32"), 4000000000u);
  CHECK_EQ(file->integer("x.i32", 5), 77u);
  CHECK_EQ(file->integer("x.u64"), uint64_t{1} << 63);
  CHECK_EQ(file->integer("absent", 5), 5u);
  CHECK_THROWS(file->integer("x.i8"), "metadata 'x.i8' is -3, expected 0 or more");
  CHECK_THROWS(file->integer("x.i64"), "metadata 'x.i64' is -5, expected 0 or more");
  CHECK_THROWS(file->integer("x.f32"), "metadata 'x.f32' is of type f32, expected an integer");
  CHECK_THROWS(file->integer("x.bool", 1), "metadata 'x.bool' is of type bool, expected an integer");
  CHECK_THROWS(file->integer("x.tokens"), "metadata 'x.tokens' is of type array, expected an integer");
  CHECK_THROWS(file->integer("absent"), "metadata 'absent' is missing");
  CHECK_EQ(file->real("x.f32"), 1.5);
  CHECK_EQ(file->real("x.f64", 3), 0.1);
  CHECK_EQ(file->real("absent", 3), 3.0);
  CHECK_THROWS(file->real("x.u8"), "metadata 'x.u8' is of type u8, expected f32 or f64");
  CHECK_THROWS(file->real("absent"), "metadata 'absent' is missing");
  CHECK_EQ(file->boolean("x.bool", false), true);
  CHECK_EQ(file->boolean("absent", true), true);
  CHECK_THROWS(file->boolean("x.u8", true), "metadata 'x.u8' is of type u8, expected bool");
  CHECK_EQ(file->string("general.architecture"), "llama");
  CHECK_EQ(file->string("x.empty", "y"), "");
  CHECK_EQ(file->string("absent", "y"), "y");
  CHECK_THROWS(file->string("x.u8"), "metadata 'x.u8' is of type u8, expected string");
  const Builder infinite = changed("x.f32.value", uint32_t{0x7f800000});
  CHECK_THROWS(Gguf::parse(infinite.bytes)->real("x.f32"), "metadata 'x.f32' is not finite");
}

TEST(header) {
  REFUSED(changed("magic", 'X'), "not a GGUF file: it begins with the bytes 58 47 55 46 ('XGUF')");
  REFUSED(changed("magic", uint32_t{0x04034b50}), "50 4b 03 04 ('PK..')");
  Builder file = small_model();
  file.bytes.resize(3);
  REFUSED(file, "begins with the bytes 47 47 55 ('GGU')");
  file.bytes.clear();
  REFUSED(file, "not a GGUF file");
  file = small_model();
  file.bytes.resize(4);
  REFUSED(file, "version at byte 4 needs 4 bytes, but only 0 are left");
  REFUSED(changed("version", 1), "version at byte 4 is 1, expected 2 or 3; write the file again");
  REFUSED(changed("version", 0), "version at byte 4 is 0, expected 2 or 3");
  REFUSED(changed("version", 4), "version at byte 4 is 4, expected 2 or 3");
  REFUSED(changed("version", 0x03000000), "version at byte 4 is big-endian");
  REFUSED(changed("version", 0x02000000), "version at byte 4 is big-endian");
  REFUSED(changed("n_tensors", uint64_t{1} << 61),
          "n_tensors at byte 8 is 2305843009213693952, expected at most 65536");
  REFUSED(changed("n_kv", uint64_t{65537}), "n_kv at byte 16 is 65537, expected at most 65536");
  REFUSED(changed("n_kv", uint64_t{65536}), "n_kv at byte 16 is 65536, but only ");
  Builder short_of_tensors = single([](Builder& b) { b.text("text", std::string(100, 'x')); });
  short_of_tensors.bytes[8] = 3;  // fits into the file, not into what follows the metadata
  REFUSED(short_of_tensors, "n_tensors at byte 8 is 3, but only ");
}

TEST(names) {
  Builder model = small_model();
  REFUSED(changed("x.u8.length", uint64_t{0}), "metadata 2: key" + at(model, "x.u8.length") + "has 0 bytes");
  REFUSED(changed("x.u8.length", UINT64_MAX), "key" + at(model, "x.u8.length") + "has 18446744073709551615 bytes");
  REFUSED(changed("x.u8.length", uint64_t{65537}), "has 65537 bytes, expected 1 to 65536");
  REFUSED(changed("x.u8.length", uint64_t{60000}), "needs 60000 bytes, but only ");
  for (const std::string& bad : {std::string("a\0b", 3), std::string("\x1f"), std::string("\x7f"), std::string("\x80"),
                                 std::string("\xc2"), std::string("\xc2\x85"),                      // C1
                                 std::string("\xc0\xaf"), std::string("\xe0\x80\x80"),              // overlong
                                 std::string("\xf0\x80\x80\x80"), std::string("\xed\xa0\x80"),      // surrogate
                                 std::string("\xf4\x90\x80\x80"), std::string("\xf5\x80\x80\x80"),  // > U+10FFFF
                                 std::string("\xe2\x82"), std::string("\xe2\x28\xa1"), std::string("\xff")}) {
    REFUSED(single([&](Builder& b) { b.scalar<uint8_t>("ok" + bad, ValueType::u8, 1); }), "expected printable UTF-8");
    Builder tensor(1, 0);
    tensor.tensor(bad, 0, {8}, 0).pad().data(32);
    REFUSED(tensor, "tensor 0: name at byte ");
  }
  for (const char* good : {" ", "~", "\xc2\xa0", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
                           "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    CHECK_EQ(parse(single([&](Builder& b) { b.scalar<uint8_t>(good, ValueType::u8, 1); }).bytes), "");
  }
  // Long names are cut in messages, between characters.
  std::string longer(63, 'k');
  longer += "\xe2\x96\x81tail";
  REFUSED(single([&](Builder& b) { b.key(longer, static_cast<ValueType>(13)); }),
          "metadata 0 '" + std::string(63, 'k') + "...': type at byte ");
  Builder twice(0, 3);
  twice.scalar<uint8_t>("b", ValueType::u8, 1).scalar<uint8_t>("a", ValueType::u8, 1);
  const size_t second = twice.bytes.size() + 8;  // after the length
  twice.scalar<uint32_t>("b", ValueType::u32, 1).pad();
  REFUSED(twice, "metadata 2 'b': key at byte " + std::to_string(second) + " is the same as that of metadata 0");
  REFUSED(changed("output_norm.weight", std::array<char, 18>{"token_embd.weight"}), "expected printable UTF-8");
  Builder tensors(2, 0);
  tensors.tensor("same", 0, {8}, 0).tensor("same", 0, {8}, 32).pad().data(64);
  REFUSED(tensors, "tensor 1 'same': name at byte 68 is the same as that of tensor 0");
}

TEST(values) {
  Builder model = small_model();
  for (uint32_t type : {13u, 100u, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
    REFUSED(changed("x.u8.type", type),
            "metadata 2 'x.u8': type" + at(model, "x.u8.type") + "is " + std::to_string(type) + ", expected 0 to 12");
    REFUSED(changed("x.scores.element", type), "element type" + at(model, "x.scores.element") + "is ");
  }
  REFUSED(changed("x.scores.element", 9), "is 9 (array), expected scalars or strings");
  REFUSED(changed("x.bool.value", uint8_t{2}), "value" + at(model, "x.bool.value") + "is 2, expected 0 or 1");
  REFUSED(changed("x.flags.value", uint16_t{0xff01}),
          "array" + at(model, "x.flags.value", 1) + "is 255, expected 0 or 1");
  REFUSED(changed("general.architecture.value.length", UINT64_MAX),
          "metadata 0 'general.architecture': string" + at(model, "general.architecture.value.length") +
              "has 18446744073709551615 bytes, expected at most 67108864");
  REFUSED(changed("general.architecture.value.length", uint64_t{67108864}), "needs 67108864 bytes, but only ");
  REFUSED(changed("x.tokens.value[3].length", uint64_t{1} << 20), "string in the array at byte ");
  REFUSED(changed("x.tokens.value[3].length", UINT64_MAX - 7), "string in the array at byte ");
  // count * size wraps around 2^64 to a small number
  for (uint64_t count : {(uint64_t{1} << 62) + 1, (uint64_t{1} << 63) + 2, UINT64_MAX / 4 + 2}) {
    REFUSED(changed("x.scores.count", count), "array length" + at(model, "x.scores.count") + "is ");
    REFUSED(changed("x.tokens.count", count), "array length" + at(model, "x.tokens.count") + "is ");
  }
}

TEST(alignment) {
  Builder model = small_model();
  for (uint32_t bad : {0u, 1u, 2u, 4u, 24u, 33u, 8192u, 1u << 31, UINT32_MAX}) {
    REFUSED(changed("general.alignment.value", bad),
            "metadata 1 'general.alignment': value" + at(model, "general.alignment.value") + "is " +
                std::to_string(bad) + ", expected a power of two from 8 to 4096");
  }
  REFUSED(changed("general.alignment.type", ValueType::i32), "is of type i32, expected u32");
  REFUSED(single([](Builder& b) { b.text("general.alignment", "32"); }), "is of type string, expected u32");
  for (uint32_t good : {8u, 16u, 64u, 4096u}) {
    Builder file(2, 1);
    file.scalar<uint32_t>("general.alignment", ValueType::u32, good);
    file.tensor("second", 0, {2}, good).tensor("first", 0, {2}, 0).pad(good).data(8);
    file.raw("padding", std::string(good - 8, '\0'), Part::content).data(8);
    CHECK_EQ(parse(file.bytes), "");
  }
  Builder file(1, 1);
  file.scalar<uint32_t>("general.alignment", ValueType::u32, 64).tensor("first", 0, {2}, 32).pad(64).data(40);
  REFUSED(file,
          "tensor 0 'first': offset" + at(file, "first.offset") + "is 32, expected a multiple of the alignment 64");
}

TEST(tensor_shapes) {
  Builder model = small_model();
  const std::string name = "tensor 1 'blk.0.attn_q.weight': ";
  for (uint32_t bad : {0u, 5u, 0x80000002u, UINT32_MAX}) {
    REFUSED(changed("blk.0.attn_q.weight.n_dims", bad), name + "n_dims" + at(model, "blk.0.attn_q.weight.n_dims") +
                                                            "is " + std::to_string(bad) + ", expected 1 to 4");
  }
  REFUSED(changed("blk.0.attn_q.weight.dims[1]", uint64_t{0}),
          name + "dims[1]" + at(model, "blk.0.attn_q.weight.dims[1]") + "is 0, expected 1 or more");
  for (uint64_t bad : {uint64_t{1} << 41, uint64_t{1} << 59, (uint64_t{1} << 59) + 1, UINT64_MAX}) {
    REFUSED(changed("blk.0.attn_q.weight.dims[1]", bad), name + "dims[1]" + at(model, "blk.0.attn_q.weight.dims[1]") +
                                                             "is " + std::to_string(bad) +
                                                             ", which makes 2^46 values or more");
  }
  REFUSED(changed("blk.0.attn_q.bias.dims[0]", uint64_t{1} << 46), "tensor 2 'blk.0.attn_q.bias': dims[0]");
  REFUSED(changed("blk.0.attn_q.weight.dims[0]", uint64_t{33}),
          name + "dims[0]" + at(model, "blk.0.attn_q.weight.dims[0]") +
              "is 33, expected a multiple of 32, the block of " + "type Q8_0");
  for (int32_t bad : {4, 5, 9, 15, 31, 36, 42, 1000, INT32_MAX, INT32_MIN, -1}) {
    REFUSED(changed("blk.0.attn_q.weight.type", bad), name + "type" + at(model, "blk.0.attn_q.weight.type") + "is " +
                                                          std::to_string(bad) + ", which is not a type");
  }
}

TEST(tensor_extents) {
  Builder model = small_model();
  const std::string name = "tensor 1 'blk.0.attn_q.weight': offset" + at(model, "blk.0.attn_q.weight.offset");
  REFUSED(changed("blk.0.attn_q.weight.offset", uint64_t{193}),
          name + "is 193, expected a multiple of the alignment 32");
  REFUSED(changed("blk.0.attn_q.weight.offset", uint64_t{160}), name + "is 160, which lies inside tensor 0");
  REFUSED(changed("blk.0.attn_q.weight.offset", uint64_t{0}), name + "is 0, which lies inside tensor 0");
  REFUSED(changed("blk.0.attn_q.weight.offset", uint64_t{224}), name + "is 224, which leaves 32 bytes before it");
  for (uint64_t bad : {UINT64_MAX - 31, uint64_t{1} << 63, uint64_t{1} << 40}) {
    REFUSED(changed("blk.0.attn_q.weight.offset", bad), "which leaves ");
  }
  // Sums of sizes that pass 2^64, one by one below the limit of a tensor.
  Builder huge(4, 0);
  for (uint64_t i = 0; i < 4; ++i) {
    huge.tensor(std::to_string(i), 28, {(uint64_t{1} << 46) - 8}, i * ((uint64_t{1} << 49) - 64));
  }
  huge.pad().data(64);
  REFUSED(huge,
          "tensor 0 '0': offset" + at(huge, "0.offset") + "is 0, and the tensor's 562949953421248 bytes would end");
  Builder file = small_model();
  file.bytes.resize(file.field("data").at + 943);
  REFUSED(file, "tensor 3 'output_norm.weight': offset");
  file.bytes.resize(file.field("padding").at + 1);
  REFUSED(file, "padding before the tensor data at byte ");
  file = small_model();
  file.bytes[file.field("padding").at] = 1;
  REFUSED(file, "is not all zero");
  file = small_model();
  file.data(16);
  REFUSED(file, "the end of the tensor data at byte " + std::to_string(file.field("data").at + 944) +
                    " is followed by 32 bytes that belong to no tensor");
  file = Builder(0, 0);
  CHECK_EQ(parse(file.bytes), "");
  file.pad();
  CHECK_EQ(parse(file.bytes), "");
  CHECK_EQ(parse(file.data(31).bytes), "");
  REFUSED(file.data(1), "is followed by 32 bytes that belong to no tensor");
}

// T2: every count, length and extent of the model with each of the numbers at which arithmetic turns.
TEST(boundary_numbers) {
  const Builder model = small_model();
  int files = 0;
  for (const char* label :
       {"n_tensors", "n_kv", "x.u8.length", "general.architecture.value.length", "x.scores.count", "x.flags.count",
        "x.tokens.count", "x.tokens.value[2].length", "blk.0.attn_q.bias.length", "blk.0.attn_q.weight.n_dims",
        "blk.0.attn_q.weight.dims[0]", "blk.0.attn_q.weight.dims[1]", "blk.0.attn_q.weight.offset"}) {
    for (uint64_t value : {uint64_t{0}, uint64_t{1}, (uint64_t{1} << 31) - 1, uint64_t{1} << 31, uint64_t{1} << 32,
                           uint64_t{1} << 63, UINT64_MAX}) {
      Builder file = model;
      const Field& field = model.field(label);
      if (field.size == 4 && value >> 32 != 0) continue;
      memcpy(file.bytes.data() + field.at, &value, field.size);
      const std::string answer = parse(file.bytes);
      if (answer.find(" at byte ") == std::string::npos) {
        fail(label, 0, std::to_string(value) + ": expected a located refusal, found \"" + answer + "\"");
      }
      ++files;
    }
  }
  CHECK(files >= 60);
}

// T3
TEST(cut_at_every_byte) {
  const Builder model = small_model();
  const size_t complete = model.field("data padding").at;
  for (size_t size = 0; size < model.bytes.size(); ++size) {
    const std::string answer = parse({model.bytes.begin(), model.bytes.begin() + static_cast<ptrdiff_t>(size)});
    if ((answer == "") != (size >= complete)) {
      fail("cut", static_cast<int>(size),
           "expected " + std::string(size < complete ? "a refusal" : "none") + ": " + answer);
    }
  }
}

TEST(single_bit_flips) {
  Builder model = small_model();
  std::vector<Part> parts(model.bytes.size(), Part::structure);
  for (const Field& field : model.fields)
    std::fill_n(parts.begin() + static_cast<ptrdiff_t>(field.at), field.size, field.part);
  std::mt19937_64 random(3);
  constexpr int kFlips = 100000;
  int accepted[4] = {}, tried[4] = {};
  for (int i = 0; i < kFlips; ++i) {
    // The first flips visit every bit of everything but the contents once.
    const uint64_t bit = static_cast<uint64_t>(i) < model.bytes.size() * 8 ? i : random() % (model.bytes.size() * 8);
    uint8_t& byte = model.bytes[bit / 8];
    byte ^= 1 << bit % 8;
    const bool ok = parse(model.bytes).empty();
    byte ^= 1 << bit % 8;
    const Part part = parts[bit / 8];
    ++tried[static_cast<int>(part)];
    accepted[static_cast<int>(part)] += ok;
    if (ok && part == Part::structure)
      fail("flip", static_cast<int>(bit / 8), "of bit " + std::to_string(bit % 8) + " is accepted");
  }
  printf("    %d flips; accepted: structure %d of %d, names %d of %d, types %d of %d, contents %d of %d\n", kFlips,
         accepted[0], tried[0], accepted[1], tried[1], accepted[2], tried[2], accepted[3], tried[3]);
}

// T4
TEST(claims_of_terabytes) {
  Builder tensor(1, 0);
  tensor.tensor("t", 0, {uint64_t{1} << 22, uint64_t{1} << 20}, 0).pad().data(1 << 19);
  REFUSED(tensor, "17592186044416 bytes would end beyond the file");
  Builder text(0, 1);
  text.key("k", ValueType::string).put("length", uint64_t{1} << 40).data(1 << 19);
  REFUSED(text, "has 1099511627776 bytes, expected at most 67108864");
  for (ValueType element : {ValueType::u8, ValueType::boolean, ValueType::f64, ValueType::string}) {
    Builder array(0, 1);
    array.array("k", element, uint64_t{1} << 40).data(1 << 19);
    REFUSED(array, "array length at byte 41 is 1099511627776, but only 524288 bytes are left");
  }
}

TEST(a_million_keys) {
  Builder file(0, 1000000);
  for (int i = 0; i < 65600; ++i) file.scalar<uint8_t>(std::to_string(i), ValueType::u8, 1);
  file.fields.clear();
  REFUSED(file, "n_kv at byte 16 is 1000000, expected at most 65536");
}

TEST(most_keys_and_tensors) {
  // Names share a long prefix and come in the worst orders for naive sorts and hashes.
  const std::string prefix(100, 'p');
  Builder keys(0, 65536);
  for (int i = 0; i < 65536; ++i) keys.scalar<uint8_t>(prefix + std::to_string(100000 + (i ^ 1)), ValueType::u8, 1);
  keys.pad();
  CHECK_EQ(parse(keys.bytes), "");
  keys.bytes[keys.fields.end()[-4].at + 105] = '0';  // the number in the last key: 165534 becomes 165530
  REFUSED(keys, "metadata 65535 'pppp");
  Builder tensors(65536, 0);
  for (int i = 0; i < 65536; ++i) tensors.tensor(prefix + std::to_string(i), 0, {1}, (65535 - i) * 32u);
  tensors.pad().data(65536 * 32);
  CHECK_EQ(parse(tensors.bytes), "");
}

TEST(deep_arrays) {
  Builder file(0, 1);
  file.key("deep", ValueType::array);
  for (int depth = 0; depth < 60000; ++depth) file.put("type", ValueType::array).put<uint64_t>("count", 1);
  file.fields.clear();
  REFUSED(file, "metadata 0 'deep': element type at byte 40 is 9 (array)");
  Builder wide(0, 1);
  wide.array("wide", ValueType::array, 80000).raw("elements", std::string(960000, '\0'), Part::content);
  REFUSED(wide, "element type at byte 40 is 9 (array)");
}

// T5, for the reader: leaks show under the address sanitizer.
TEST(every_allocation_fails_in_turn) {
  if (allocated == 0) SKIP("failing allocations (operator new belongs to another tool, such as valgrind)");
  const Builder accepted = small_model();
  const Builder located = changed("x.bool.value", uint8_t{2});
  for (const Builder* file : {&accepted, &located}) {
    int failures = 0;
    for (bool done = false; !done; ++failures) {
      allocations_left = failures;
      try {
        Gguf::parse(file->bytes);
        done = true;
      } catch (const std::bad_alloc&) {
      } catch (const Error&) {
        done = true;
      }
      allocations_left = INT64_MAX;
    }
    CHECK(failures > 3);
  }
}
