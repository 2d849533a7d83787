#pragma once
// Device memory where kernels run on the host: pages of their own, which nobody can touch but
// kernels, copies, fills and the twins of library calls, while they run. A line of the trainer that
// reads or writes a device tensor without a copy ends there, as it would on a GPU.
#include <cstddef>
#include <cstdint>
#include <set>

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

/// Scratch that a library's own call would have where its twin has none: counted, not there.
class CountedScratch {
public:
    explicit CountedScratch(std::int64_t bytes);
    ~CountedScratch();
    CountedScratch(const CountedScratch&) = delete;
    CountedScratch& operator=(const CountedScratch&) = delete;

private:
    std::int64_t bytes_;
};
/// The most that ops have held at once since the last reset, counted ones too, in whole steps of
/// the pool.
std::int64_t scratch_peak();
/// The same of the ops one by one: of each while which any scratch was held.
std::set<std::int64_t> scratch_peaks_of_ops();
void reset_scratch_peak();

}  // namespace stoa::cuda::host
