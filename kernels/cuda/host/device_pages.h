#pragma once
// Device memory where kernels run on the host: pages of their own, which nobody can touch but
// kernels, copies, fills and the twins of library calls, while they run. A line of the trainer that
// reads or writes a device tensor without a copy ends there, as it would on a GPU.
#include <cstddef>
#include <cstdint>

namespace stoa::cuda::host {

/// Opens all device memory for the scope. Scopes nest, in a thread and beside each other.
class DeviceMemoryOpen {
public:
    DeviceMemoryOpen();
    ~DeviceMemoryOpen();
    DeviceMemoryOpen(const DeviceMemoryOpen&) = delete;
    DeviceMemoryOpen& operator=(const DeviceMemoryOpen&) = delete;
};

/// What allocate() gave.
void give_back(std::byte* data);
/// Whether an address is device memory.
bool is_device_memory(const void* address);
/// Bytes that are allocated.
std::int64_t device_bytes();
/// How often the host has waited for a stream so far.
std::int64_t waits();

}  // namespace stoa::cuda::host
