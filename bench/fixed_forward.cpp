// One fixed forward pass on one thread, through the C interface: what instructions.py counts the instructions of.
//
//   fixed_forward MODEL.gguf ISA ROWS exact|fast
//
// Every row is computed, every second one scored. Nothing is timed here.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "localdiff.h"

namespace {

void check(ld_status status) {
  if (status == LD_OK) return;
  fprintf(stderr, "fixed_forward: %s\n", ld_last_error());
  exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: fixed_forward MODEL.gguf ISA ROWS exact|fast\n");
    return 2;
  }
  const int rows = atoi(argv[3]);
  ld_gguf* file;
  ld_model* model;
  ld_session* session;
  check(ld_gguf_open(argv[1], LD_ACCESS_MAP, &file));
  ld_model_options options = {};
  options.struct_size = sizeof options;
  options.threads = 1;
  options.isa = argv[2];
  check(ld_model_open(file, &options, &model));
  ld_model_info info = {};
  info.struct_size = sizeof info;
  check(ld_model_get_info(model, &info));
  ld_session_options shape = {};
  shape.struct_size = sizeof shape;
  shape.slot_length = rows;
  shape.threads = 1;
  shape.math = strcmp(argv[4], "fast") == 0 ? LD_MATH_FAST : LD_MATH_EXACT;
  check(ld_session_create(model, &shape, &session));

  std::vector<int32_t> tokens(rows), score, token(rows);
  for (int i = 0; i < rows; ++i) tokens[i] = (i * 7919 + 13) % info.vocab;
  for (int i = 0; i < rows; i += 2) score.push_back(i);
  ld_canvas canvas = {};
  canvas.struct_size = sizeof canvas;
  canvas.tokens = tokens.data();
  canvas.length = rows;
  canvas.score = score.data();
  canvas.n_score = static_cast<int32_t>(score.size());
  canvas.token = token.data();
  check(ld_session_propose(session, &canvas, 1));

  ld_session_free(session);
  ld_model_free(model);
  ld_gguf_free(file);
}
