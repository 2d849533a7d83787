#pragma once
// How kernels are started, and all that their bodies use of a GPU's threads. nvcc compiles the
// bodies for the device; for the tests the host compiler compiles the same text, and threads are
// fibers (kernels/cuda/host/). So everything here has a twin there, with the same names.
#if defined(__CUDACC__)
#include "kernels/cuda/device_launch.h"
#else
#include "kernels/cuda/host/host_launch.h"
#endif
