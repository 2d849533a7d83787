#pragma once
#include <string>
#include <vector>

#include "launcher/doctor/facts.h"

namespace stoa {

enum class FindingStatus { ok, note, problem };
struct Finding {
    FindingStatus status = FindingStatus::ok;
    std::string area;   // "gpu", "mpi", ...
    std::string found;  // one line
    std::string fix{};  // one line; every problem has one
};

/// What follows from the facts, in a fixed order. Pure.
std::vector<Finding> judge_machine(const MachineFacts& facts);
int count_problems(const std::vector<Finding>& findings);
const char* status_name(FindingStatus status);

/// The parts of judge_machine.
void judge_gpus(std::vector<Finding>& out, const MachineFacts& facts);
void judge_host(std::vector<Finding>& out, const MachineFacts& facts);
void judge_mpi(std::vector<Finding>& out, const MachineFacts& facts);
void judge_storage(std::vector<Finding>& out, const MachineFacts& facts);

}  // namespace stoa
