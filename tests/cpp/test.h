// The test harness of the C++ tests: each tests/cpp/test_*.cpp includes it once, states its cases with TEST and gets
// main.
//
//   TEST(adds_numbers) {
//     CHECK(1 + 1 == 2);                       // counts a failure and goes on
//     CHECK_EQ(add(1, 1), 2);                  // the same, and prints both values
//     REQUIRE(file != nullptr);                // ends the case
//     CHECK_THROWS(open("missing"), "missing");  // an ld::Error or other exception whose message holds the text
//   }
//
// Arguments of the program select cases by part of their name. Prints "N passed, N failed"; exit status 1 on a failure.
// SKIP("reason") ends a case as "not run here", which is never counted as passed. Not here: timing, death tests,
// threads.
#pragma once

#include <cstdio>
#include <cstring>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

namespace ld::test {

struct Case {
  const char* name;
  void (*run)();
};

struct Stop {};  // thrown by REQUIRE and SKIP to leave the case

struct State {
  std::vector<Case> cases;
  int failures = 0;  // of the running case
  bool skipped = false;
};

inline State& state() {
  static State value;
  return value;
}

struct Register {
  Register(const char* name, void (*run)()) { state().cases.push_back({name, run}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  constexpr int kShown = 20;  // of one case
  if (state().failures++ < kShown) printf("    %s:%d: %s\n", file, line, what.c_str());
}

inline bool check(bool ok, const char* file, int line, const char* expression) {
  if (!ok) fail(file, line, expression);
  return ok;
}

template <class A, class B>
void check_equal(const A& a, const B& b, const char* file, int line, const char* expression) {
  if (a == b) return;
  std::ostringstream out;
  out << expression << ": " << a << " and " << b;
  fail(file, line, out.str());
}

template <class F>
void check_throws(F&& call, const char* part, const char* file, int line, const char* expression) {
  try {
    call();
  } catch (const std::exception& error) {
    if (!strstr(error.what(), part)) {
      fail(file, line, std::string(expression) + " says \"" + error.what() + "\", expected \"" + part + "\" in it");
    }
    return;
  }
  fail(file, line, std::string(expression) + " does not throw; expected \"" + part + "\"");
}

constexpr int kNotRun = 77;  // exit status by which ctest knows a program that could not run any case

inline int run_all(int argc, char** argv) {
  int passed = 0, failed = 0, skipped = 0;
  for (const Case& each : state().cases) {
    bool selected = argc < 2;
    for (int i = 1; i < argc; ++i) selected |= strstr(each.name, argv[i]) != nullptr;
    if (!selected) continue;
    state().failures = 0;
    state().skipped = false;
    try {
      each.run();
    } catch (const Stop&) {
    } catch (const std::exception& error) {
      fail(each.name, 0, std::string("unexpected exception: ") + error.what());
    }
    if (state().failures) {
      ++failed;
      printf("FAILED %s (%d checks)\n", each.name, state().failures);
    } else if (state().skipped) {
      ++skipped;
    } else {
      ++passed;
    }
    fflush(stdout);
  }
  if (skipped) printf("%d not run here\n", skipped);
  printf("%d passed, %d failed\n", passed, failed);
  if (passed + failed == 0) return skipped ? kNotRun : 1;
  return failed != 0;
}

}  // namespace ld::test

#define TEST(name)                                                     \
  static void test_##name();                                           \
  static const ld::test::Register register_##name(#name, test_##name); \
  static void test_##name()
#define CHECK(...) ld::test::check(static_cast<bool>(__VA_ARGS__), __FILE__, __LINE__, #__VA_ARGS__)
#define CHECK_EQ(a, b) ld::test::check_equal((a), (b), __FILE__, __LINE__, #a " == " #b)
#define CHECK_THROWS(call, part) ld::test::check_throws([&] { (void)(call); }, part, __FILE__, __LINE__, #call)
#define REQUIRE(...)                                 \
  do {                                               \
    if (!CHECK(__VA_ARGS__)) throw ld::test::Stop(); \
  } while (0)
#define SKIP(reason)                      \
  do {                                    \
    printf("not run here: %s\n", reason); \
    ld::test::state().skipped = true;     \
    throw ld::test::Stop();               \
  } while (0)

int main(int argc, char** argv) { return ld::test::run_all(argc, argv); }
