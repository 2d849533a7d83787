#pragma once
// A sniff at the machines before hours are spent: is one rank, or one link, much slower than the
// others?
#include <string>
#include <vector>

#include "parallel/mesh.h"

namespace stoa {

struct PreFlightTimes {
    std::vector<double> product_ms, copy_ms;  // by rank
    struct Link {
        int a, b;
        double ms;
    };
    std::vector<Link> links;
};
struct PreFlightOutlier {
    std::string what;  // "matrix product", "memory copy", "link"
    int rank = 0, peer = -1;
    double ms = 0.0, median_ms = 0.0;
};

/// Each rank times a product of 256 x 256 matrices and a copy of 8 MiB, all at once, in its own
/// processor time; then 256 KiB there and back with every other rank (up to 32 ranks; beyond, with
/// the ranks 1, 2, 4, ... further), on the clock. The best of three each, some ten milliseconds in
/// all; and again, up to three times, while something is off by `factor`, so that a busy moment
/// does not count. Every rank gets all times.
/// comm: messages between pairs, one barrier and one all_reduce(world) per pass
PreFlightTimes measure_pre_flight(const Communicator& world, double factor);

/// What takes `factor` times the median of its kind and a millisecond more. Of two values the
/// median is the smaller.
std::vector<PreFlightOutlier> find_outliers(const PreFlightTimes& times, double factor);

}  // namespace stoa
