/* libcudart.so.13: the CUDA runtime, as ONNX Runtime's provider calls it. */
#include "stand_in.h"
#include <stdlib.h>
#include <string.h>

struct dim {
    unsigned x, y, z;
};

NOTHING(__cudaGetKernel)
NOTHING(__cudaRegisterFatBinaryEnd)
NOTHING(__cudaRegisterFunction)
NOTHING(__cudaRegisterVar)
NOTHING(__cudaUnregisterFatBinary)
NOTHING(cudaEventDestroy)
NOTHING(cudaEventElapsedTime)
NOTHING(cudaFuncSetAttribute)
NOTHING(cudaGetLastError)
NOTHING(cudaGraphDestroy)
NOTHING(cudaGraphExecDestroy)
NOTHING(cudaKernelSetAttributeForDevice)
NOTHING(cudaLibraryGetKernel)
NOTHING(cudaLibraryLoadData)
NOTHING(cudaLibraryUnload)
NOTHING(cudaMemPoolDestroy)
NOTHING(cudaMemPoolGetAttribute)
NOTHING(cudaMemPoolSetAttribute)
NOTHING(cudaMemPoolTrimTo)
NOTHING(cudaMemcpyFromSymbol)
NOTHING(cudaPeekAtLastError)
NOTHING(cudaSetDevice)
NOTHING(cudaStreamDestroy)
MAKES(cudaStreamCreate)
MAKES(cudaEventCreate)
MAKES(cudaMemPoolCreate)

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[4];
    (void)binary;
    return handle;
}

/* ---- the device ---------------------------------------------------------------------------------------------- */
int cudaGetDeviceCount(int *count) { return *count = 1, SUCCESS; }
int cudaGetDevice(int *device) { return *device = 0, SUCCESS; }
int cudaDriverGetVersion(int *version) { return *version = CUDA_VERSION, SUCCESS; }
int cudaRuntimeGetVersion(int *version) { return *version = CUDA_VERSION, SUCCESS; }
const char *cudaGetErrorString(int error) { return error ? "the stand-in refuses" : "no error"; }
const char *cudaGetErrorName(int error) { return error == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : "standIn"; }

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 75: *value = COMPUTE_MAJOR; break;
    case 76: *value = COMPUTE_MINOR; break;
    case 16: *value = 132; break;    /* multiprocessors */
    case 97: *value = 232448; break; /* shared memory of a block, at most */
    default: *value = 1024;
    }
    return SUCCESS;
}

/* cudaDeviceProp of CUDA 13 by offsets; 1008 bytes. */
static void put_int(char *properties, size_t offset, int value) { memcpy(properties + offset, &value, sizeof value); }
static void put_size(char *properties, size_t offset, size_t value) { memcpy(properties + offset, &value, sizeof value); }

int cudaGetDeviceProperties(char *properties, int device) {
    (void)device;
    memset(properties, 0, 1008);
    strcpy(properties, DEVICE_NAME);
    put_size(properties, 288, DEVICE_BYTES); /* totalGlobalMem */
    put_size(properties, 296, 49152);        /* sharedMemPerBlock */
    put_int(properties, 304, 65536);         /* regsPerBlock */
    put_int(properties, 308, 32);            /* warpSize */
    put_int(properties, 320, 1024);          /* maxThreadsPerBlock */
    put_int(properties, 336, 2147483647);    /* maxGridSize */
    put_int(properties, 340, 65535);
    put_int(properties, 344, 65535);
    put_int(properties, 360, COMPUTE_MAJOR);
    put_int(properties, 364, COMPUTE_MINOR);
    put_int(properties, 384, 132);      /* multiProcessorCount */
    put_int(properties, 596, 50 << 20); /* l2CacheSize */
    put_int(properties, 604, 2048);     /* maxThreadsPerMultiProcessor */
    put_size(properties, 624, 233472);  /* sharedMemPerMultiprocessor */
    put_size(properties, 672, 232448);  /* sharedMemPerBlockOptin */
    return SUCCESS;
}

/* cudaFuncAttributes, 144 bytes. */
int cudaFuncGetAttributes(char *attributes, const void *function) {
    (void)function;
    memset(attributes, 0, 144);
    put_int(attributes, 24, 1024); /* maxThreadsPerBlock */
    return SUCCESS;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int threads, size_t s, unsigned g) {
    (void)f, (void)threads, (void)s, (void)g;
    return *blocks = 1, SUCCESS;
}
int cudaGetDriverEntryPointByVersion(const char *n, void **function, unsigned v, unsigned long long f, int *status) {
    (void)n, (void)v, (void)f;
    if (status) *status = 1; /* not found */
    return *function = NULL, SUCCESS;
}

/* ---- memory -------------------------------------------------------------------------------------------------- */
/* Fresh memory holds zeros here: it is what kernels that do nothing leave behind, and zeros are finite. */
int cudaMalloc(void **address, size_t size) { return stand_in_allocate(address, size, 0, 0); }
int cudaMallocFromPoolAsync(void **address, size_t size, void *pool, void *stream) {
    return (void)pool, (void)stream, stand_in_allocate(address, size, 0, 0);
}
int cudaMallocHost(void **address, size_t size) { return stand_in_allocate(address, size, 1, 0); }
int cudaHostAlloc(void **address, size_t size, unsigned flags) {
    return (void)flags, stand_in_allocate(address, size, 1, 0);
}
int cudaFree(void *address) { return stand_in_free(address); }
int cudaFreeAsync(void *address, void *stream) { return (void)stream, stand_in_free(address); }
int cudaFreeHost(void *address) { return stand_in_free(address); }
int cudaMemGetInfo(size_t *available, size_t *all) { return stand_in_memory(available, all), SUCCESS; }

struct pointer { /* cudaPointerAttributes, 88 bytes */
    int type, device;
    void *on_device, *on_host;
    long reserved[8];
};
int cudaPointerGetAttributes(struct pointer *found, void *address) {
    memset(found, 0, sizeof *found);
    found->type = stand_in_is_device(address) ? 2 : 0;
    found->on_device = found->type ? address : NULL;
    return SUCCESS;
}

/* Where a copy goes: cudaMemcpyKind, or (4) whatever the addresses say. */
static int copy(void *to, const void *from, size_t size, int kind, const void *stream) {
    if (kind == 0) return memcpy(to, from, size), SUCCESS;
    if (kind == 4) kind = stand_in_is_device(to) ? (stand_in_is_device(from) ? 3 : 1) : 2;
    return stand_in_copy(kind == 1 ? UPLOAD : kind == 2 ? DOWNLOAD : COPY, to, from, size, stream);
}
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    int error = copy(to, from, size, kind, NULL);
    stand_in_note(SYNCHRONIZE, to, from, size, NULL);
    return error;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    return copy(to, from, size, kind, stream);
}
int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                      int kind, void *stream) {
    enum kind what = kind == 1 ? UPLOAD : kind == 2 ? DOWNLOAD : COPY;
    return stand_in_move(what, (struct lines){to, from, width, height, to_pitch, from_pitch, 1, 0, 0}, stream);
}
/* Other values than zero are left out: the provider writes them into memory of its own. */
int cudaMemsetAsync(void *to, int value, size_t size, void *stream) {
    return value ? SUCCESS : stand_in_copy(ZERO, to, NULL, size, stream);
}
int cudaMemset(void *to, int value, size_t size) { return cudaMemsetAsync(to, value, size, NULL); }

/* ---- work ---------------------------------------------------------------------------------------------------- */
int cudaLaunchKernel(const void *f, struct dim grid, struct dim block, void **arguments, size_t shared, void *stream) {
    (void)f, (void)grid, (void)block, (void)arguments, (void)shared;
    return stand_in_note(LAUNCH, NULL, NULL, 0, stream), SUCCESS;
}
/* What stands in <<< >>>, on its way to cudaLaunchKernel. */
static _Thread_local struct launch {
    struct dim grid, block;
    size_t shared;
    void *stream;
} next;
unsigned __cudaPushCallConfiguration(struct dim grid, struct dim block, size_t shared, void *stream) {
    return next = (struct launch){grid, block, shared, stream}, SUCCESS;
}
int __cudaPopCallConfiguration(struct dim *grid, struct dim *block, size_t *shared, void **stream) {
    return *grid = next.grid, *block = next.block, *shared = next.shared, *stream = next.stream, SUCCESS;
}
int cudaLaunchCooperativeKernel(const void *f, struct dim grid, struct dim block, void **a, size_t shared, void *stream) {
    return cudaLaunchKernel(f, grid, block, a, shared, stream);
}
int __cudaLaunchKernel(void *kernel, struct dim grid, struct dim block, void **a, size_t shared, void *stream) {
    return cudaLaunchKernel(kernel, grid, block, a, shared, stream);
}
/* `launch` begins as cudaLaunchConfig_t does. */
int cudaLaunchKernelExC(const struct launch *launch, const void *function, void **arguments) {
    return cudaLaunchKernel(function, launch->grid, launch->block, arguments, launch->shared, launch->stream);
}
int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    stand_in_note(HOST_FUNCTION, NULL, NULL, 0, stream);
    if (!stand_in_is_capturing()) function(data);
    return SUCCESS;
}

int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return (void)flags, cudaStreamCreate(stream); }
int cudaStreamSynchronize(void *stream) { return stand_in_note(SYNCHRONIZE, NULL, NULL, 0, stream), SUCCESS; }
int cudaDeviceSynchronize(void) { return stand_in_note(SYNCHRONIZE, NULL, NULL, 0, NULL), SUCCESS; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
    (void)flags;
    return stand_in_note(WAIT, event, NULL, 0, stream), SUCCESS;
}
int cudaEventCreateWithFlags(void **event, unsigned flags) { return (void)flags, cudaEventCreate(event); }
int cudaEventRecord(void *event, void *stream) { return stand_in_note(RECORD, event, NULL, 0, stream), SUCCESS; }
int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) {
    return (void)flags, cudaEventRecord(event, stream);
}
int cudaEventSynchronize(void *event) { return stand_in_note(SYNCHRONIZE, event, NULL, 0, NULL), SUCCESS; }

int cudaStreamIsCapturing(void *stream, int *status) { return (void)stream, *status = stand_in_is_capturing(), SUCCESS; }
int cudaStreamBeginCapture(void *stream, int mode) { return (void)mode, stand_in_begin_capture(stream); }
int cudaStreamEndCapture(void *stream, void **graph) { return (void)stream, stand_in_end_capture(graph); }
int cudaGraphInstantiate(void **executable, void *graph, unsigned long long flags) {
    return (void)flags, stand_in_instantiate(executable, graph);
}
int cudaGraphLaunch(void *executable, void *stream) { return stand_in_launch_graph(executable, stream); }
