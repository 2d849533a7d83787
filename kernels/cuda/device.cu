#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"

namespace stoa::cuda {
namespace {

cudaStream_t handle(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }
cudaEvent_t event(void* handle) { return static_cast<cudaEvent_t>(handle); }
std::size_t size(std::int64_t bytes) { return static_cast<std::size_t>(bytes); }

/// Of the current GPU, from which allocate_on takes.
cudaMemPool_t pool() {
    int device = 0;
    cudaMemPool_t pool = nullptr;
    check_cuda(cudaGetDevice(&device), "device");
    check_cuda(cudaDeviceGetDefaultMemPool(&pool, device), "memory pool");
    return pool;
}

}  // namespace

std::vector<DeviceInfo> list_devices(std::string& reason) {
    int count = 0;
    if (const cudaError_t err = cudaGetDeviceCount(&count); err != cudaSuccess) {
        int driver = 0, runtime = 0;
        (void)cudaDriverGetVersion(&driver);
        (void)cudaRuntimeGetVersion(&runtime);
        const auto version = [](int v) {
            return v == 0 ? std::string("none")
                          : std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10);
        };
        reason = std::string(cudaGetErrorString(err)) + " (the driver is for CUDA " +
                 version(driver) + ", this program for " + version(runtime) + ")";
        return {};
    }
    std::vector<DeviceInfo> devices;
    for (int i = 0; i < count; ++i) {
        cudaDeviceProp prop{};
        if (cudaGetDeviceProperties(&prop, i) != cudaSuccess) continue;
        char id[32] = {};
        (void)cudaDeviceGetPCIBusId(id, sizeof id, i);
        devices.push_back({prop.name, 10 * prop.major + prop.minor,
                           static_cast<std::int64_t>(prop.totalGlobalMem), id});
    }
    if (devices.empty()) reason = "the driver reports no GPU";
    return devices;
}

int toolkit_version() { return CUDART_VERSION; }

bool runs_kernels() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

void use_device(int index) { check_cuda(cudaSetDevice(index), "choose the GPU"); }

std::int64_t free_bytes() {
    std::size_t left = 0, all = 0;
    check_cuda(cudaMemGetInfo(&left, &all), "free memory");
    return static_cast<std::int64_t>(left);
}

std::byte* allocate(std::int64_t bytes) {
    void* data = nullptr;
    check_cuda(cudaMalloc(&data, size(bytes > 0 ? bytes : 1)), "cudaMalloc");
    return static_cast<std::byte*>(data);
}
void release(std::byte* data) noexcept {
    if (data != nullptr) (void)cudaFree(data);
}
std::byte* allocate_on(Stream stream, std::int64_t bytes) {
    void* data = nullptr;
    check_cuda(cudaMallocAsync(&data, size(bytes), handle(stream)), "cudaMallocAsync");
    return static_cast<std::byte*>(data);
}
void release_on(Stream stream, std::byte* data) noexcept {
    (void)cudaFreeAsync(data, handle(stream));
}

void reserve_scratch(Stream stream, std::int64_t bytes) {
    if (bytes == 0) return;
    release_on(stream, allocate_on(stream, bytes));
    synchronize(stream);
    std::uint64_t from_here = 0;  // the reservation is nobody's use
    check_cuda(cudaMemPoolSetAttribute(pool(), cudaMemPoolAttrUsedMemHigh, &from_here),
               "memory pool");
}

std::int64_t scratch_peak_bytes() {
    std::uint64_t high = 0;
    check_cuda(cudaMemPoolGetAttribute(pool(), cudaMemPoolAttrUsedMemHigh, &high), "memory pool");
    return static_cast<std::int64_t>(high);
}

std::byte* allocate_pinned(std::int64_t bytes) {
    void* data = nullptr;
    check_cuda(cudaMallocHost(&data, size(bytes > 0 ? bytes : 1)), "cudaMallocHost");
    return static_cast<std::byte*>(data);
}
void release_pinned(std::byte* data) noexcept {
    if (data != nullptr) (void)cudaFreeHost(data);
}

void copy_to_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream stream) {
    check_cuda(cudaMemcpyAsync(to, from, size(bytes), cudaMemcpyHostToDevice, handle(stream)),
               "copy to the device");
}
void copy_from_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream stream) {
    check_cuda(cudaMemcpyAsync(to, from, size(bytes), cudaMemcpyDeviceToHost, handle(stream)),
               "copy from the device");
}
void copy_on_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream stream) {
    check_cuda(cudaMemcpyAsync(to, from, size(bytes), cudaMemcpyDeviceToDevice, handle(stream)),
               "copy on the device");
}
void fill_bytes(std::byte* to, int value, std::int64_t bytes, Stream stream) {
    check_cuda(cudaMemsetAsync(to, value, size(bytes), handle(stream)), "fill");
}
void synchronize(Stream stream) {
    check_cuda(cudaStreamSynchronize(handle(stream)), "a kernel before this point");
}

Event::~Event() {
    if (handle_ != nullptr) (void)cudaEventDestroy(event(handle_));
}
void Event::record(Stream stream) {
    if (handle_ == nullptr) {
        // The thread that waits sleeps: its processor is the computation's.
        cudaEvent_t made = nullptr;
        check_cuda(cudaEventCreateWithFlags(&made, cudaEventDisableTiming | cudaEventBlockingSync),
                   "event");
        handle_ = made;
    }
    check_cuda(cudaEventRecord(event(handle_), handle(stream)), "event");
}
void Event::make_wait(Stream stream) const {
    if (handle_ != nullptr)
        check_cuda(cudaStreamWaitEvent(handle(stream), event(handle_), 0), "wait for an event");
}
void Event::wait() const {
    if (handle_ != nullptr)
        check_cuda(cudaEventSynchronize(event(handle_)), "a kernel before this point");
}
bool Event::reached() const {
    if (handle_ == nullptr) return true;
    const cudaError_t err = cudaEventQuery(event(handle_));
    if (err == cudaErrorNotReady) return false;
    check_cuda(err, "a kernel before this point");
    return true;
}

Stopwatch::Stopwatch(Stream stream) : stream_(stream) {
    cudaEvent_t begin = nullptr, end = nullptr;
    check_cuda(cudaEventCreate(&begin), "event");
    begin_ = begin;
    check_cuda(cudaEventCreate(&end), "event");
    end_ = end;
}
Stopwatch::~Stopwatch() {
    (void)cudaEventDestroy(event(begin_));
    (void)cudaEventDestroy(event(end_));
}
void Stopwatch::start() { check_cuda(cudaEventRecord(event(begin_), handle(stream_)), "event"); }
double Stopwatch::stop_ms() {
    check_cuda(cudaEventRecord(event(end_), handle(stream_)), "event");
    check_cuda(cudaEventSynchronize(event(end_)), "a kernel before this point");
    float ms = 0.0f;
    check_cuda(cudaEventElapsedTime(&ms, event(begin_), event(end_)), "event");
    return static_cast<double>(ms);
}

CudaStream::CudaStream() {
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    handle_ = stream;
    // Scratch memory that is given back stays ours: a synchronisation would return it otherwise.
    std::uint64_t keep = ~std::uint64_t{0};
    check_cuda(cudaMemPoolSetAttribute(pool(), cudaMemPoolAttrReleaseThreshold, &keep),
               "memory pool");
}
CudaStream::~CudaStream() { (void)cudaStreamDestroy(static_cast<cudaStream_t>(handle_)); }

}  // namespace stoa::cuda
