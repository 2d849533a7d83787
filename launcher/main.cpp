#include "launcher/cli.h"

int main(int argc, char** argv) { return stoa::run_cli(argc, argv); }
