/* The CUDA driver without a GPU: counts calls, keeps memory on the host, and runs no kernel.
 *
 * STUB_CUDA_ANSWERS  a file of fp32 rows that copies to the host return, one after another, in place of what no kernel wrote
 * STUB_CUDA_COUNTS   a file to which the numbers of calls are written at the end, a line "name count" each
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long pointer;

struct count { const char *name; long calls; };
static struct count counts[64];
static char *answers;
static long answer_bytes;

static void note(const char *name) {
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        if (!counts[i].name) counts[i].name = name;
        if (!strcmp(counts[i].name, name)) { counts[i].calls++; return; }
    }
}

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("STUB_CUDA_ANSWERS");
    FILE *file = path ? fopen(path, "rb") : NULL;
    if (!file) return;
    fseek(file, 0, SEEK_END);
    answer_bytes = ftell(file);
    rewind(file);
    answers = malloc((size_t)answer_bytes);
    if (fread(answers, 1, (size_t)answer_bytes, file) != (size_t)answer_bytes) answer_bytes = 0;
    fclose(file);
}

__attribute__((destructor)) static void stop(void) {
    const char *path = getenv("STUB_CUDA_COUNTS");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    for (size_t i = 0; i < sizeof counts / sizeof *counts && counts[i].name; i++)
        fprintf(file, "%s %ld\n", counts[i].name, counts[i].calls);
    fclose(file);
}

static int to_host(void *target, pointer source, size_t bytes) {
    if (!answer_bytes) { memcpy(target, (void *)source, bytes); return 0; }
    for (size_t i = 0; i < bytes; i++) ((char *)target)[i] = answers[i % (size_t)answer_bytes];
    return 0;
}

#define NOTHING(name) int name(void) { note(#name); return 0; }
#define HANDLE(name) int name(void **made) { note(#name); *made = (void *)(size_t)0x10; return 0; }

NOTHING(cuInit)
NOTHING(cuCtxSynchronize)
NOTHING(cuCtxPushCurrent_v2)
NOTHING(cuCtxSetCurrent)
NOTHING(cuDevicePrimaryCtxRelease_v2)
NOTHING(cuStreamSynchronize)
NOTHING(cuStreamDestroy_v2)
NOTHING(cuStreamBeginCapture_v2)
NOTHING(cuStreamWaitEvent)
NOTHING(cuEventRecord)
NOTHING(cuEventDestroy_v2)
NOTHING(cuGraphLaunch)
NOTHING(cuGraphExecDestroy)
NOTHING(cuGraphDestroy)
NOTHING(cuModuleUnload)
NOTHING(cuFuncSetAttribute)
NOTHING(cuLaunchKernel)
HANDLE(cuCtxGetCurrent)
HANDLE(cuCtxPopCurrent_v2)
HANDLE(cuDevicePrimaryCtxRetain)
HANDLE(cuStreamCreate)
HANDLE(cuEventCreate)
HANDLE(cuModuleLoadData)
HANDLE(cuModuleGetFunction)
HANDLE(cuGraphInstantiateWithFlags)

int cuStreamEndCapture(void *stream, void **graph) { note("cuStreamEndCapture"); (void)stream; *graph = (void *)(size_t)0x10; return 0; }
int cuGetErrorString(int status, const char **text) { (void)status; *text = "an error of the stub"; return 0; }
int cuDeviceGetCount(int *count) { note("cuDeviceGetCount"); *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { note("cuDeviceGet"); *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { (void)device; snprintf(name, (size_t)size, "Stub H100"); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = (size_t)80 << 30; return 0; }
/* 75 and 76 are the major and minor number of the compute capability */
int cuDeviceGetAttribute(int *value, int attribute, int device) { (void)device; *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 132; return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuPointerGetAttribute(void *value, int attribute, pointer at) { (void)value; (void)attribute; (void)at; return 1; }

int cuMemAlloc_v2(pointer *made, size_t bytes) { note("cuMemAlloc_v2"); *made = (pointer)calloc(1, bytes); return *made ? 0 : 2; }
int cuMemFree_v2(pointer memory) { note("cuMemFree_v2"); free((void *)memory); return 0; }
int cuMemAllocHost_v2(void **made, size_t bytes) { note("cuMemAllocHost_v2"); *made = calloc(1, bytes); return *made ? 0 : 2; }
int cuMemFreeHost(void *memory) { note("cuMemFreeHost"); free(memory); return 0; }
int cuMemsetD8_v2(pointer to, unsigned char value, size_t bytes) { note("cuMemsetD8_v2"); memset((void *)to, value, bytes); return 0; }
int cuMemcpyHtoD_v2(pointer to, const void *from, size_t bytes) { note("cuMemcpyHtoD_v2"); memcpy((void *)to, from, bytes); return 0; }
int cuMemcpyHtoDAsync_v2(pointer to, const void *from, size_t bytes, void *stream) { (void)stream; return cuMemcpyHtoD_v2(to, from, bytes); }
int cuMemcpyDtoDAsync_v2(pointer to, pointer from, size_t bytes, void *stream) { note("cuMemcpyDtoDAsync_v2"); (void)stream; memmove((void *)to, (void *)from, bytes); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, pointer from, size_t bytes, void *stream) { note("cuMemcpyDtoHAsync_v2"); (void)stream; return to_host(to, from, bytes); }
