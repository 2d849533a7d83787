#pragma once
// For a program that runs from a bundle: STOA_BUNDLE is its folder (scripts.cpp).
#include <string>
#include <vector>

namespace stoa {

/// `program`, or the start script where that is the program of a bundle.
std::string started_by(const std::string& program);

/// This process's environment without the libraries of a bundle: for the system's own programs.
std::vector<std::string> tool_environment();

}  // namespace stoa
