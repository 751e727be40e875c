/* The C API of rescompile, for C and for every language that can call it.
 *
 * Functions return RESCOMPILE_OK or an error code; rescompile_last_error() then holds one sentence, for the calling
 * thread, until its next call that fails.
 *
 * Thread safety: one engine may be used from any number of threads at once; loading is independent; freeing must not
 * overlap with another call on the same engine.
 */
#ifndef RESCOMPILE_H
#define RESCOMPILE_H

#include <stddef.h>
#include <stdint.h>

#ifndef RESCOMPILE_API
#define RESCOMPILE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum rescompile_status {
  RESCOMPILE_OK = 0,
  RESCOMPILE_USAGE = 1,       /* the caller asked for what this engine does not take */
  RESCOMPILE_ENGINE = 2,      /* the directory is damaged or does not give its golden answers */
  RESCOMPILE_UNAVAILABLE = 3, /* this build or this machine cannot run the engine */
  RESCOMPILE_BACKEND = 4,     /* the backend's library refused the payload or the inference */
  RESCOMPILE_IMAGE = 5,       /* the image is too small or too elongated */
  RESCOMPILE_INTERNAL = 6     /* out of memory, or a defect of this library */
} rescompile_status;

typedef enum rescompile_dtype { RESCOMPILE_FLOAT32 = 0, RESCOMPILE_UINT8 = 1 } rescompile_dtype;
typedef enum rescompile_layout { RESCOMPILE_NCHW = 0, RESCOMPILE_NHWC = 1 } rescompile_layout;
typedef enum rescompile_hint { RESCOMPILE_LATENCY = 0, RESCOMPILE_THROUGHPUT = 1 } rescompile_hint;

typedef struct rescompile_engine rescompile_engine;

/* Zero is the default of every field: hashes and golden answers are checked, the backend chooses the threads. */
typedef struct rescompile_options {
  int skip_verification; /* not 0: a faster start, for directories that were loaded before */
  int threads;           /* CPU threads; 0 leaves the choice to the backend */
  rescompile_hint hint;
  const char* cache;     /* directory for what the backend compiles at load; NULL for none */
  /* Paths of public keys in PEM, of which one must have signed the engine, and their number; 0 trusts every directory. */
  const char* const* trusted_keys;
  size_t trusted_keys_count;
  /* Images of most calls. On a CPU such calls are a few percent faster; 0 takes the size that the engine was tuned for.
   * The first call of another size takes as long as a load. */
  int batch;
} rescompile_options;

/* Meaning of an output: logits of which the largest wins; one logit whose sign decides; logits that each decide for
 * themselves; numbers; an embedding or a feature map. */
typedef enum rescompile_kind {
  RESCOMPILE_CLASSES,
  RESCOMPILE_BINARY,
  RESCOMPILE_MULTILABEL,
  RESCOMPILE_VALUES,
  RESCOMPILE_FEATURES
} rescompile_kind;

/* What goes in and what comes out. */
typedef struct rescompile_facts {
  rescompile_dtype dtype;
  rescompile_layout layout;
  size_t shape[3];    /* one input image, without the batch dimension */
  size_t image_size;  /* values of one image: the product of shape */
  size_t batch_min, batch_opt, batch_max;
  size_t classes;     /* values of the first output for one image */
  size_t concurrency; /* inferences that run at once; more callers wait */
} rescompile_facts;

/* One output of an engine. */
typedef struct rescompile_output {
  const char* name; /* belongs to the engine */
  rescompile_kind kind;
  size_t rank;      /* 1 for [C], 3 for [C, H, W] */
  size_t shape[3];  /* of one image, without the batch dimension; `rank` of them */
  size_t size;      /* values of one image: the product of shape */
} rescompile_output;

/* `options` may be NULL. *engine is NULL where the function fails. */
RESCOMPILE_API rescompile_status rescompile_load(const char* directory, const rescompile_options* options,
                                                 rescompile_engine** engine);

/* NULL is allowed. */
RESCOMPILE_API void rescompile_free(rescompile_engine* engine);

/* How many outputs there are; 0 for NULL. */
RESCOMPILE_API size_t rescompile_output_count(const rescompile_engine* engine);
RESCOMPILE_API rescompile_status rescompile_get_output(const rescompile_engine* engine, size_t index,
                                                       rescompile_output* output);

/* Logits [count, classes] of `count` images of `image_size` values each; any count from 1. `images_size` and
 * `logits_size` are the numbers of values that the buffers hold. */
RESCOMPILE_API rescompile_status rescompile_infer_float(const rescompile_engine* engine, const float* images,
                                                        size_t images_size, size_t count, float* logits,
                                                        size_t logits_size);
RESCOMPILE_API rescompile_status rescompile_infer_bytes(const rescompile_engine* engine, const uint8_t* images,
                                                        size_t images_size, size_t count, float* logits,
                                                        size_t logits_size);

/* All outputs of an engine, which may have several: output i into `outputs[i]`, a buffer of `sizes[i]` = count * its size
 * values. */
RESCOMPILE_API rescompile_status rescompile_infer_all_float(const rescompile_engine* engine, const float* images,
                                                            size_t images_size, size_t count, float* const* outputs,
                                                            const size_t* sizes, size_t outputs_count);
RESCOMPILE_API rescompile_status rescompile_infer_all_bytes(const rescompile_engine* engine, const uint8_t* images,
                                                            size_t images_size, size_t count, float* const* outputs,
                                                            const size_t* sizes, size_t outputs_count);

/* Heights and widths that an engine takes; of an engine of one size, both ends are that size. Calls without a height and
 * width are about images of `own_height` x `own_width`. */
typedef struct rescompile_sizes {
  size_t min_height, min_width, max_height, max_width, own_height, own_width;
} rescompile_sizes;

RESCOMPILE_API rescompile_status rescompile_get_sizes(const rescompile_engine* engine, rescompile_sizes* sizes);

/* As rescompile_get_output, for images of another height and width. */
RESCOMPILE_API rescompile_status rescompile_get_output_at(const rescompile_engine* engine, size_t index, size_t height,
                                                          size_t width, rescompile_output* output);

/* As rescompile_infer_all_float and rescompile_infer_all_bytes, for images of another height and width. */
RESCOMPILE_API rescompile_status rescompile_infer_at_float(const rescompile_engine* engine, const float* images,
                                                           size_t images_size, size_t count, size_t height, size_t width,
                                                           float* const* outputs, const size_t* sizes,
                                                           size_t outputs_count);
RESCOMPILE_API rescompile_status rescompile_infer_at_bytes(const rescompile_engine* engine, const uint8_t* images,
                                                           size_t images_size, size_t count, size_t height, size_t width,
                                                           float* const* outputs, const size_t* sizes,
                                                           size_t outputs_count);

/* One decoded, upright RGB image (height rows of width pixels of 3 bytes; for networks with opacity, RGBA of 4) as input,
 * into `image` of `image_size` values; the function must be that of the input's dtype. */
RESCOMPILE_API rescompile_status rescompile_preprocess_float(const rescompile_engine* engine, const uint8_t* rgb,
                                                             size_t width, size_t height, float* image,
                                                             size_t image_size);
RESCOMPILE_API rescompile_status rescompile_preprocess_bytes(const rescompile_engine* engine, const uint8_t* rgb,
                                                             size_t width, size_t height, uint8_t* image,
                                                             size_t image_size);

RESCOMPILE_API rescompile_status rescompile_get_facts(const rescompile_engine* engine, rescompile_facts* facts);

/* Strings belong to the engine; NULL where `index` names no class. */
RESCOMPILE_API const char* rescompile_class_name(const rescompile_engine* engine, size_t index);
RESCOMPILE_API rescompile_kind rescompile_output_kind(const rescompile_engine* engine);
RESCOMPILE_API const char* rescompile_model_name(const rescompile_engine* engine);
RESCOMPILE_API const char* rescompile_precision(const rescompile_engine* engine);
RESCOMPILE_API const char* rescompile_backend(const rescompile_engine* engine);

/* The k best classes of one image's logits, best first, into `indices` and `probabilities` of k places each; *found
 * is how many were written, min(k, classes). */
RESCOMPILE_API rescompile_status rescompile_top_k(const float* logits, size_t classes, size_t k, size_t* indices,
                                                  double* probabilities, size_t* found);

/* One sentence about the last failure on this thread; never NULL. */
RESCOMPILE_API const char* rescompile_last_error(void);

RESCOMPILE_API const char* rescompile_version(void);

#ifdef __cplusplus
}
#endif

#endif
