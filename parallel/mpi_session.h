#pragma once
#include <string>

namespace stoa {

/// Owns MPI_Init_thread and MPI_Finalize. Held by main; nothing else starts or ends MPI.
/// errors: DeviceError when MPI refuses to start
class MpiSession {
public:
    MpiSession(int& argc, char**& argv);
    ~MpiSession();  // aborts the job when close() was not reached: peers may be waiting
    MpiSession(const MpiSession&) = delete;
    MpiSession& operator=(const MpiSession&) = delete;
    int rank() const { return rank_; }  // numbered machine by machine (node_map.h), as in a mesh
    int size() const { return size_; }
    int local_rank() const { return local_rank_; }  // among the ranks of this host
    /// MPI_Finalize; all ranks reach it.
    void close();
    /// Ends the whole job with `exit_code`, for errors met where peers may wait in a collective.
    [[noreturn]] static void abort(int exit_code);

private:
    int rank_ = 0, size_ = 1, local_rank_ = 0;
    bool open_ = true;
};

/// "node-17": the host name of this process.
std::string host_name();

}  // namespace stoa
