#include "parallel/agree.h"

#include <array>
#include <exception>

#include "parallel/collectives.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

struct Failure {
    ExitCode code = ExitCode::ok;
    ErrorFields fields;
};

Failure run_locally(const std::string& phase, const std::function<void()>& work) {
    try {
        work();
        return {};
    } catch (const Error& e) {
        return {e.code(), e.fields()};
    } catch (const std::bad_alloc&) {
        return {ExitCode::memory, {.what = "out of memory", .where = phase}};
    } catch (const std::exception& e) {
        return {ExitCode::internal, {.what = e.what(), .where = phase}};
    }
}

std::array<std::string*, 5> members(ErrorFields& f) {
    return {&f.what, &f.where, &f.expected, &f.actual, &f.hint};
}

}  // namespace

void agree(const Communicator& comm, const std::string& phase, const std::function<void()>& work,
           Site site) {
    Failure failure = run_locally(phase, work);
    const bool failed = failure.code != ExitCode::ok;
    const std::int64_t first = all_reduce_scalar(std::int64_t{failed ? comm.rank() : comm.size()},
                                                 ReduceOp::min, comm, site);
    if (first == comm.size()) return;
    const int root = static_cast<int>(first);
    if (comm.size() > 1 && comm.rank() == root) {
        const std::string who = "rank " + std::to_string(root) + " on " + host_name();
        failure.fields.where += failure.fields.where.empty() ? who : " (" + who + ")";
    }
    const auto code = static_cast<ExitCode>(
        std::stoi(broadcast(std::to_string(static_cast<int>(failure.code)), root, comm, site)));
    for (std::string* text : members(failure.fields))
        *text = broadcast(*text, root, comm, site);
    failure.fields.rank = root;
    throw Error(code, failure.fields);
}

}  // namespace stoa
