/* Denoises a canvas with the C interface alone: token ids in, token ids out.
 *
 *   cc -std=c11 denoise.c $(localdiff doctor --cflags --libs) -o denoise
 *   ./denoise model.gguf MASK SHIFT COUNT ID ID ...      prompt ids, then COUNT masked positions
 *
 * The simplest good decoder: each step asks for every masked position and commits the one the model is surest of.
 * Not here: text (a tokenizer turns it into ids), sampling, several canvases.
 */
#include <localdiff.h>
#include <stdio.h>
#include <stdlib.h>

static void check(ld_status status) {
  if (status == LD_OK) return;
  fprintf(stderr, "denoise: %s\n", ld_last_error());
  exit(1);
}

static void* need(void* memory) {
  if (memory == NULL) {
    fprintf(stderr, "denoise: not enough memory\n");
    exit(1);
  }
  return memory;
}

int main(int argc, char** argv) {
  if (argc < 6) {
    fprintf(stderr, "usage: denoise MODEL.gguf MASK SHIFT COUNT ID...\n");
    return 2;
  }
  const int32_t mask = atoi(argv[2]), shift = atoi(argv[3]), prompt = argc - 5;
  const int32_t count = atoi(argv[4]) < 0 ? 0 : atoi(argv[4]), length = prompt + count;

  ld_gguf* file;
  ld_model* model;
  ld_session* session;
  check(ld_gguf_open(argv[1], LD_ACCESS_MAP, &file));
  check(ld_model_open(file, NULL, &model));
  const ld_session_options options = {.struct_size = sizeof options, .slots = 1, .slot_length = length};
  check(ld_session_create(model, &options, &session));

  int32_t* tokens = need(malloc(sizeof *tokens * (size_t)length));
  int32_t* masked = need(malloc(sizeof *masked * (size_t)length)); /* positions still unknown, ascending */
  int32_t* token = need(malloc(sizeof *token * (size_t)length));
  float* probability = need(malloc(sizeof *probability * (size_t)length));
  for (int32_t i = 0; i < length; i++) tokens[i] = i < prompt ? atoi(argv[5 + i]) : mask;
  for (int32_t i = 0; i < count; i++) masked[i] = prompt + i;

  for (int32_t left = count; left > 0; left--) {
    ld_canvas canvas = {.struct_size = sizeof canvas,
                        .tokens = tokens,
                        .length = length,
                        .score = masked,
                        .n_score = left,
                        .logit_shift = shift,
                        .forbidden = &mask,
                        .n_forbidden = 1,
                        .token = token,
                        .probability = probability};
    check(ld_session_propose(session, &canvas, 1));
    int32_t best = 0;
    for (int32_t i = 1; i < left; i++)
      if (probability[i] > probability[best]) best = i;
    tokens[masked[best]] = token[best];
    for (int32_t i = best; i + 1 < left; i++) masked[i] = masked[i + 1];
  }

  for (int32_t i = prompt; i < length; i++) printf("%d%c", tokens[i], i + 1 < length ? ' ' : '\n');
  free(tokens);
  free(masked);
  free(token);
  free(probability);
  ld_session_free(session);
  ld_model_free(model);
  ld_gguf_free(file);
  return 0;
}
