/* libcuda.so.1: the driver, as cuda-bindings calls it, and what all parts of the stand-in share. */
#define _GNU_SOURCE
#include "stand_in.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the notes ----------------------------------------------------------------------------------------------- */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct call *notes;
static size_t noted, room;
static int capturing;
static pthread_t capturer;

/* Whether another thread captures: ONNX Runtime's mode lets nobody allocate or free meanwhile. */
static int forbidden(void) { return capturing && !pthread_equal(capturer, pthread_self()); }

static void note(enum kind kind, const char *name, const void *to, const void *from, size_t size, const void *stream) {
    pthread_mutex_lock(&lock);
    if (noted == room) notes = realloc(notes, (room = room ? 2 * room : 4096) * sizeof *notes);
    struct call *call = &notes[noted++];
    *call = (struct call){kind, capturing, to, from, stream, size, ""};
    strncpy(call->name, name, sizeof call->name - 1);
    pthread_mutex_unlock(&lock);
}

void stand_in_note(enum kind kind, const void *to, const void *from, size_t size, const void *stream) {
    note(kind, "", to, from, size, stream);
}

void stand_in_note_named(enum kind kind, const char *name, const void *stream) {
    note(kind, name, NULL, NULL, 0, stream);
}

/* For calls.py. */
size_t stand_in_noted(void) { return noted; }
const struct call *stand_in_notes(void) { return notes; }
void stand_in_forget(void) { noted = 0; }

/* ---- memory -------------------------------------------------------------------------------------------------- */
struct block {
    char *start;
    size_t size;
    int pinned;
};
static struct block *blocks;
static size_t block_count, block_room, used;

int stand_in_allocate(void **address, size_t size, int pinned, int fresh) {
    if (forbidden()) return CAPTURE_UNSUPPORTED;
    if (!pinned && used + size > DEVICE_BYTES) return OUT_OF_MEMORY;
    char *start = aligned_alloc(256, (size + 511) / 256 * 256);
    if (!start) return OUT_OF_MEMORY;
    memset(start, fresh, size);
    pthread_mutex_lock(&lock);
    if (block_count == block_room)
        blocks = realloc(blocks, (block_room = block_room ? 2 * block_room : 1024) * sizeof *blocks);
    blocks[block_count++] = (struct block){start, size, pinned};
    if (!pinned) used += size;
    pthread_mutex_unlock(&lock);
    stand_in_note(pinned ? PIN : ALLOCATE, start, NULL, size, NULL);
    *address = start;
    return SUCCESS;
}

int stand_in_free(void *address) {
    if (!address) return SUCCESS;
    if (forbidden()) return CAPTURE_UNSUPPORTED;
    struct block found = {0};
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < block_count; i++)
        if (blocks[i].start == address) {
            found = blocks[i];
            blocks[i] = blocks[--block_count];
            if (!found.pinned) used -= found.size;
            break;
        }
    pthread_mutex_unlock(&lock);
    if (!found.start) return INVALID_VALUE;
    stand_in_note(found.pinned ? UNPIN : FREE, address, NULL, found.size, NULL);
    free(address);
    return SUCCESS;
}

/* Whether all bytes lie in one block of the "device". */
static int owned(const char *start, size_t size) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < block_count && !found; i++) {
        const struct block *block = &blocks[i];
        found = !block->pinned && start >= block->start && start + size <= block->start + block->size;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

int stand_in_is_device(const void *address) { return owned(address, 1); }

void stand_in_memory(size_t *available, size_t *all) {
    *available = DEVICE_BYTES - used;
    *all = DEVICE_BYTES;
}

/* ---- copies and graphs --------------------------------------------------------------------------------------- */
struct graph {
    struct lines *moves;
    size_t count;
};
static struct graph *recording;

static void run(struct lines lines) {
    for (size_t plane = 0; plane < lines.planes; plane++)
        for (size_t line = 0; line < lines.count; line++) {
            char *to = lines.to + plane * lines.to_plane + line * lines.to_pitch;
            if (lines.from)
                memcpy(to, lines.from + plane * lines.from_plane + line * lines.from_pitch, lines.width);
            else
                memset(to, 0, lines.width);
        }
}

int stand_in_move(enum kind kind, struct lines lines, const void *stream) {
    if (!lines.width || !lines.count || !lines.planes) return SUCCESS;
    size_t last = lines.planes - 1, end = lines.count - 1;
    size_t to_size = last * lines.to_plane + end * lines.to_pitch + lines.width;
    size_t from_size = last * lines.from_plane + end * lines.from_pitch + lines.width;
    if (kind != DOWNLOAD && !owned(lines.to, to_size)) return INVALID_VALUE;
    if ((kind == DOWNLOAD || kind == COPY) && !owned(lines.from, from_size)) return INVALID_VALUE;
    stand_in_note(kind, lines.to, lines.from, lines.width * lines.count * lines.planes, stream);
    if (capturing) {
        recording->moves = realloc(recording->moves, (recording->count + 1) * sizeof lines);
        recording->moves[recording->count++] = lines;
    } else
        run(lines);
    return SUCCESS;
}

int stand_in_copy(enum kind kind, void *to, const void *from, size_t size, const void *stream) {
    return stand_in_move(kind, (struct lines){to, from, size, 1, 0, 0, 1, 0, 0}, stream);
}

int stand_in_begin_capture(void *stream) {
    stand_in_note(CAPTURE, NULL, NULL, 0, stream);
    recording = calloc(1, sizeof *recording);
    capturer = pthread_self();
    capturing = 1;
    usleep(1000); /* takes its time: another thread may come between */
    return SUCCESS;
}

int stand_in_end_capture(void **graph) {
    capturing = 0;
    *graph = recording;
    return SUCCESS;
}

int stand_in_is_capturing(void) { return capturing; }

int stand_in_instantiate(void **executable, void *graph) {
    struct graph *copy = calloc(1, sizeof *copy), *given = graph;
    copy->count = given->count;
    copy->moves = memcpy(calloc(given->count + 1, sizeof *copy->moves), given->moves ? given->moves : copy->moves,
                         given->count * sizeof *copy->moves);
    *executable = copy;
    return SUCCESS;
}

int stand_in_launch_graph(void *executable, const void *stream) {
    struct graph *graph = executable;
    stand_in_note(GRAPH, NULL, NULL, graph->count, stream);
    for (size_t i = 0; i < graph->count; i++) run(graph->moves[i]);
    return SUCCESS;
}

/* ---- the driver's functions ---------------------------------------------------------------------------------- */
NOTHING(cuInit)
NOTHING(cuCtxSetCurrent)
NOTHING(cuLibraryUnload)
NOTHING(cuTensorMapEncodeTiled)
NOTHING(cuGraphDestroy) /* what a graph holds is kept until the process ends */
NOTHING(cuGraphExecDestroy)
int cuThreadExchangeStreamCaptureMode(int *mode) { return *mode = 0, SUCCESS; } /* GLOBAL, as at first */
NOTHING(cuEventDestroy)

static int make(void **made) {
    *made = calloc(1, 64);
    return SUCCESS;
}

int cuDriverGetVersion(int *version) { return *version = CUDA_VERSION, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int *device, int index) { return *device = index, index == 0 ? SUCCESS : INVALID_DEVICE; }
int cuDeviceGetName(char *name, int length, int device) {
    (void)device;
    strncpy(name, DEVICE_NAME, length);
    return SUCCESS;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? COMPUTE_MAJOR : attribute == 76 ? COMPUTE_MINOR : 1024;
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return (void)device, make(context); }

int cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, SUCCESS; }
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    return (void)flags, priority > 0 || priority < -5 ? INVALID_VALUE : make(stream);
}
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    return (void)flags, stand_in_note(WAIT, event, NULL, 0, stream), SUCCESS;
}
int cuStreamSynchronize(void *stream) { return stand_in_note(SYNCHRONIZE, NULL, NULL, 0, stream), SUCCESS; }
int cuEventCreate(void **event, unsigned flags) { return (void)flags, make(event); }
int cuEventRecord(void *event, void *stream) { /* an event holds the stream that it was recorded on */
    return *(void **)event = stream, stand_in_note(RECORD, event, NULL, 0, stream), SUCCESS;
}
int cuEventQuery(void *event) { return (void)event, SUCCESS; } /* work is done at once */
int cuEventSynchronize(void *event) { return stand_in_note(SYNCHRONIZE, event, NULL, 0, *(void **)event), SUCCESS; }
int cuEventElapsedTime(float *milliseconds, void *from, void *to) {
    (void)from, (void)to;
    return *milliseconds = 0, SUCCESS;
}

/* Fresh memory holds anything: NaN, -1. */
int cuMemAlloc(void **address, size_t size) { return stand_in_allocate(address, size, 0, 0xFF); }
int cuMemFree(void *address) { return stand_in_free(address); }
int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    return (void)flags, stand_in_allocate(address, size, 1, 0xFF);
}
int cuMemFreeHost(void *address) { return stand_in_free(address); }
int cuMemGetInfo(size_t *available, size_t *all) { return stand_in_memory(available, all), SUCCESS; }

int cuMemcpyHtoDAsync(void *to, const void *from, size_t size, void *stream) {
    return stand_in_copy(UPLOAD, to, from, size, stream);
}
int cuMemcpyDtoHAsync(void *to, const void *from, size_t size, void *stream) {
    return stand_in_copy(DOWNLOAD, to, from, size, stream);
}
int cuMemcpyDtoDAsync(void *to, const void *from, size_t size, void *stream) {
    char *a = to;
    const char *b = from;
    if (a < b + size && b < a + size) return INVALID_VALUE; /* CUDA leaves it undefined; here it is refused */
    return stand_in_copy(COPY, to, from, size, stream);
}
int cuMemsetD8Async(void *to, unsigned char value, size_t size, void *stream) {
    return value ? INVALID_VALUE : stand_in_copy(ZERO, to, NULL, size, stream);
}
int cuMemsetD2D8Async(void *to, size_t pitch, unsigned char value, size_t width, size_t height, void *stream) {
    if (value || pitch < width) return INVALID_VALUE;
    return stand_in_move(ZERO, (struct lines){to, NULL, width, height, pitch, 0, 1, 0, 0}, stream);
}

/* CUDA_MEMCPY3D. */
struct place {
    size_t x, y, z, level;
    int type;
    void *host, *device, *array, *reserved;
    size_t pitch, height;
};
struct copy3d {
    struct place from, to;
    size_t width, height, depth;
};

int cuMemcpy3DAsync(const struct copy3d *copy, void *stream) {
    const struct place *from = &copy->from, *to = &copy->to;
    if (from->type != 2 || to->type != 2) return INVALID_VALUE; /* both on the device */
    if (from->pitch < copy->width || to->pitch < copy->width) return INVALID_VALUE;
    if (from->height < copy->height || to->height < copy->height) return INVALID_VALUE;
    struct lines lines = {to->device, from->device, copy->width, copy->height, to->pitch, from->pitch, copy->depth,
                          to->pitch * to->height, from->pitch * from->height};
    return stand_in_move(COPY, lines, stream);
}

int cuStreamBeginCapture(void *stream, int mode) { return (void)mode, stand_in_begin_capture(stream); }
int cuStreamEndCapture(void *stream, void **graph) { return (void)stream, stand_in_end_capture(graph); }
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    return (void)flags, stand_in_instantiate(executable, graph);
}
int cuGraphLaunch(void *executable, void *stream) { return stand_in_launch_graph(executable, stream); }

/* A library is the text it was loaded from, a kernel its name. */
int cuLibraryLoadData(void **library, const void *code, void *o, void *v, unsigned n, void *lo, void *lv, unsigned ln) {
    (void)o, (void)v, (void)n, (void)lo, (void)lv, (void)ln;
    return *library = strdup(code), SUCCESS;
}
int cuLibraryGetKernel(void **kernel, void *library, const char *name) {
    if (!strstr(library, name)) return NOT_FOUND;
    return *kernel = strdup(name), SUCCESS;
}
int cuKernelGetFunction(void **function, void *kernel) { return *function = kernel, SUCCESS; }
/* The first argument of a kernel, as 4 bytes, is what its note carries as a size. */
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)extra;
    if (!gx || !bx) return INVALID_VALUE;
    note(LAUNCH, function, NULL, NULL, arguments ? *(unsigned *)arguments[0] : 0, stream);
    return SUCCESS;
}

int cuGetErrorName(int error, const char **name) { return (void)error, *name = "STAND_IN", SUCCESS; }
int cuGetErrorString(int error, const char **text) { return (void)error, *text = "the stand-in refuses", SUCCESS; }

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    (void)version, (void)flags;
    static void *self;
    if (!self) {
        Dl_info info;
        dladdr((void *)cuGetProcAddress_v2, &info);
        self = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    }
    *function = dlsym(self, name);
    if (status) *status = *function ? 0 : 1; /* found, or not */
    return *function ? SUCCESS : NOT_FOUND;
}
int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
