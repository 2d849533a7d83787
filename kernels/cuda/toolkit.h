#pragma once

namespace stoa::cuda {

/// The CUDA toolkit that this build was made with: 13000 for 13.0; 0 for a build without CUDA.
int toolkit_version();

}  // namespace stoa::cuda
