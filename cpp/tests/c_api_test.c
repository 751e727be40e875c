/* The C API from a C program: c_api_test DIR loads a float engine and asks it what a C user would; c_api_test DIR KEY
 * says whether the public KEY signed it. */
#include <math.h>
#include <rescompile/rescompile.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                       \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      fprintf(stderr, "%s:%d: %s does not hold (%s)\n", __FILE__, __LINE__, #condition,        \
              rescompile_last_error());                                                        \
      return 1;                                                                                \
    }                                                                                          \
  } while (0)

/* Prints what loading says when only `key` is trusted. */
static int check_signature(const char* directory, const char* key) {
  rescompile_engine* engine = NULL;
  rescompile_options options = {0};
  const char* nothing = NULL;
  options.trusted_keys_count = 1;
  CHECK(rescompile_load(directory, &options, &engine) == RESCOMPILE_USAGE && engine == NULL);
  options.trusted_keys = &nothing;
  CHECK(rescompile_load(directory, &options, &engine) == RESCOMPILE_USAGE && engine == NULL);
  options.trusted_keys = &key;
  puts(rescompile_load(directory, &options, &engine) == RESCOMPILE_OK ? "trusted" : rescompile_last_error());
  rescompile_free(engine);
  return 0;
}

int main(int count, char** arguments) {
  rescompile_engine* engine = NULL;
  rescompile_options options = {0};
  rescompile_facts facts;
  float *images, *logits;
  unsigned char* pixels;
  size_t best[5], found = 0, index;
  double probabilities[5];

  if (count == 3) return check_signature(arguments[1], arguments[2]);
  CHECK(count == 2);
  CHECK(rescompile_load("/nowhere", NULL, &engine) == RESCOMPILE_ENGINE && engine == NULL);
  CHECK(strstr(rescompile_last_error(), "/nowhere is not an engine directory") != NULL);
  CHECK(rescompile_load(NULL, NULL, &engine) == RESCOMPILE_USAGE);
  CHECK(rescompile_load(arguments[1], NULL, NULL) == RESCOMPILE_USAGE);
  options.threads = -1;
  CHECK(rescompile_load(arguments[1], &options, &engine) == RESCOMPILE_USAGE);
  options.threads = 1;
  CHECK(rescompile_load(arguments[1], &options, &engine) == RESCOMPILE_OK && engine != NULL);

  CHECK(rescompile_get_facts(engine, &facts) == RESCOMPILE_OK);
  CHECK(facts.dtype == RESCOMPILE_FLOAT32 && facts.layout == RESCOMPILE_NCHW);
  CHECK(facts.image_size == facts.shape[0] * facts.shape[1] * facts.shape[2]);
  CHECK(strcmp(rescompile_backend(engine), "openvino") == 0);
  CHECK(rescompile_class_name(engine, 0) != NULL && rescompile_class_name(engine, facts.classes) == NULL);

  images = calloc(facts.image_size, sizeof *images);
  logits = calloc(facts.classes, sizeof *logits);
  pixels = calloc(300 * 200, 3);
  CHECK(images != NULL && logits != NULL && pixels != NULL);
  for (index = 0; index < 300 * 200 * 3; ++index) pixels[index] = (unsigned char)(index * 7);
  CHECK(rescompile_preprocess_float(engine, pixels, 300, 200, images, facts.image_size) == RESCOMPILE_OK);
  CHECK(rescompile_preprocess_float(engine, pixels, 0, 1, images, facts.image_size) == RESCOMPILE_IMAGE);
  CHECK(rescompile_preprocess_float(engine, pixels, (size_t)-1, (size_t)-1, images, facts.image_size) ==
        RESCOMPILE_IMAGE);
  CHECK(rescompile_infer_float(engine, images, facts.image_size, 1, logits, facts.classes) == RESCOMPILE_OK);
  CHECK(rescompile_infer_float(engine, images, facts.image_size, 1, logits, 1) == RESCOMPILE_USAGE);
  CHECK(rescompile_infer_float(engine, NULL, facts.image_size, 1, logits, facts.classes) == RESCOMPILE_USAGE);
  CHECK(rescompile_infer_float(NULL, images, facts.image_size, 1, logits, facts.classes) == RESCOMPILE_USAGE);
  CHECK(rescompile_infer_bytes(engine, pixels, facts.image_size, 1, logits, facts.classes) == RESCOMPILE_USAGE);
  CHECK(rescompile_top_k(logits, facts.classes, 5, best, probabilities, &found) == RESCOMPILE_OK && found == 5);
  for (index = 0; index < found; ++index) CHECK(isfinite(probabilities[index]) && best[index] < facts.classes);
  for (index = 1; index < found; ++index) CHECK(probabilities[index - 1] >= probabilities[index]);
  printf("%s %s\n", rescompile_version(), rescompile_class_name(engine, best[0]));

  free(pixels);
  free(logits);
  free(images);
  rescompile_free(engine);
  rescompile_free(NULL);
  return 0;
}
