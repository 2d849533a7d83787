#pragma once
// The verbs that are about a machine, not about a run.
#include "launcher/commands.h"

namespace stoa {

int command_doctor(const Args& args);  // stoa doctor [--dir DIR]
int command_bundle(const Args& args);  // stoa bundle DIR

}  // namespace stoa
