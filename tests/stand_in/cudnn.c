/* libcudnn.so.9: found, and of a known version. The functions that a convolution needs are not here: a graph with one
 * makes a session, and is not run on the stand-in. */
#include "stand_in.h"
#include <stdlib.h>

MAKES(cudnnCreate)
NOTHING(cudnnDestroy)
NOTHING(cudnnSetStream)
size_t cudnnGetVersion(void) { return 91600; }
const char *cudnnGetErrorString(int status) { return (void)status, "stand-in"; }
