#pragma once
// Newline-delimited text over a TCP connection that nobody waits for.
#include <string>
#include <vector>

namespace stoa {

/// Owns a non-blocking socket. What cannot be sent at once is kept and goes with the next flush.
class LineSocket {
public:
    LineSocket() = default;
    explicit LineSocket(int fd) : fd_(fd) {}
    LineSocket(LineSocket&& other) noexcept { *this = static_cast<LineSocket&&>(other); }
    LineSocket& operator=(LineSocket&& other) noexcept;
    ~LineSocket() { close(); }
    LineSocket(const LineSocket&) = delete;
    LineSocket& operator=(const LineSocket&) = delete;

    int fd() const { return fd_; }
    bool open() const { return fd_ >= 0; }
    void close();
    /// Sends `line` and a newline; false: the connection is lost (and closed), or the peer has
    /// not read for so long that more than `kMostKept` bytes wait.
    bool send(const std::string& line);
    bool flush();
    bool wants_to_write() const { return !out_.empty(); }
    /// Appends the lines that have come; false: the connection is lost.
    bool receive(std::vector<std::string>& lines);

    static constexpr std::size_t kMostKept = 4 << 20, kLongestLine = 1 << 20;

private:
    int fd_ = -1;
    std::string in_, out_;
};

/// "host:port,host:port": connects to all of them at once and keeps the first that answers within
/// `seconds`; closed where none does.
LineSocket connect_to_first(const std::string& addresses, double seconds);

/// A listening socket on all interfaces, on a port that the system chooses; -1 where it cannot be
/// had.
int listen_on_any_port(int* port);
/// IPv4 addresses of this machine's interfaces that are up, loopback last.
std::vector<std::string> own_addresses();

}  // namespace stoa
