#pragma once
#include <string>

namespace stoa {

/// Ends in an error of ours for one of a GPU's driver or runtime, which says what to do about it.
/// `name`, `text`: as cudaGetErrorName and cudaGetErrorString have them; `what`: what was being
/// done; `gpu`: its index, -1 where that is not known
/// errors: MemoryError where memory was lacking, else DeviceError
[[noreturn]] void throw_device_error(const std::string& name, const std::string& text,
                                     const char* what, int gpu);

}  // namespace stoa
