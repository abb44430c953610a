/* A stand-in for CUDA, for machines without a GPU. "Device" memory is the host's, copies copy, kernels do nothing, and
 * every call is noted down for `calls.py` to read.
 *
 * cuda.c is the driver and holds what all parts share; cudart.c, cublas.c, cudnn.c and curand.c rest on it. Only what
 * ONNX Runtime's CUDA provider and runtime/backends/device.py call is there. Declarations are this project's own: they
 * follow the binary interface of CUDA 13, so that no CUDA headers are needed.
 */
#ifndef STAND_IN_H
#define STAND_IN_H
#include <stddef.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500,
       CAPTURE_UNSUPPORTED = 900 };

/* What was called; `KINDS` in calls.py has the same order. */
enum kind {
    ALLOCATE, FREE, PIN, UNPIN, UPLOAD, DOWNLOAD, COPY, ZERO, LAUNCH, PRODUCT, SYNCHRONIZE, RECORD, WAIT, CAPTURE,
    GRAPH, HOST_FUNCTION
};

/* One call. `captured`: it became a part of a graph and did not run. `name` is that of a kernel where it is known. */
struct call {
    int kind, captured;
    const void *to, *from, *stream;
    size_t size;
    char name[48];
};

void stand_in_note(enum kind kind, const void *to, const void *from, size_t size, const void *stream);
void stand_in_note_named(enum kind kind, const char *name, const void *stream);

int stand_in_allocate(void **address, size_t size, int pinned, int fresh); /* `fresh` is what each byte holds */
int stand_in_free(void *address);
int stand_in_is_device(const void *address); /* lies in memory that was allocated on the "device" */
void stand_in_memory(size_t *available, size_t *all);

/* Lines of a copy, or of zeros where `from` is NULL, in `planes` planes. Refuses "device" memory that nobody owns. */
struct lines {
    char *to;
    const char *from;
    size_t width, count, to_pitch, from_pitch, planes, to_plane, from_plane;
};
int stand_in_move(enum kind kind, struct lines lines, const void *stream);
int stand_in_copy(enum kind kind, void *to, const void *from, size_t size, const void *stream);

int stand_in_begin_capture(void *stream);
int stand_in_end_capture(void **graph);
int stand_in_is_capturing(void);
int stand_in_instantiate(void **executable, void *graph);
int stand_in_launch_graph(void *executable, const void *stream);

#define DEVICE_NAME "Stand-in for a GPU"
#define COMPUTE_MAJOR 9
#define COMPUTE_MINOR 0
#define CUDA_VERSION 13000
#define DEVICE_BYTES ((size_t)8 << 30)

/* A function that succeeds and does nothing. */
#define NOTHING(name) int name(void) { return SUCCESS; }
/* A function that makes an object. */
#define MAKES(name) int name(void **made) { *made = calloc(1, 256); return SUCCESS; }

#endif
