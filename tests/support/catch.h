#pragma once
// Catch2 2 (Debian 12) and 3 (Ubuntu 24.04) under one name.
#if __has_include(<catch2/catch.hpp>)
#include <catch2/catch.hpp>
#else
#include <catch2/catch_all.hpp>
using Catch::Approx;  // NOLINT: version 2 puts it here
namespace Catch {
using Matchers::Contains;
}
#endif
