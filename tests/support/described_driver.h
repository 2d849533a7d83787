#pragma once
#include <cstdint>

/// What the described driver has taken so far; the last kernel's name and its image's ELF flags.
struct DescribedKernels {
    std::int64_t images = 0;
    std::uint32_t elf_flags = 0;
    char name[512] = {};
    /// The flags' second byte (CUDA 13), or the lowest (before).
    bool compiled_for(int capability) const {
        const auto sm = static_cast<std::uint32_t>(capability);
        return (elf_flags >> 8 & 0xff) == sm || (elf_flags & 0xff) == sm;
    }
};
extern "C" DescribedKernels* stoa_described_kernels();
