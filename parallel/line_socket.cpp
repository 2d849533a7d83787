#include "parallel/line_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

namespace stoa {
namespace {

using Clock = std::chrono::steady_clock;

/// A socket that is on its way to host:port; -1 where there is no such place.
int begin_connect(const std::string& address) {
    const std::size_t colon = address.rfind(':');
    if (colon == std::string::npos) return -1;
    const std::string host = address.substr(0, colon), port = address.substr(colon + 1);
    addrinfo hints{}, *found = nullptr;
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return -1;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const bool begun =
        fd >= 0 && (connect(fd, found->ai_addr, found->ai_addrlen) == 0 || errno == EINPROGRESS);
    freeaddrinfo(found);
    if (begun) return fd;
    if (fd >= 0) ::close(fd);
    return -1;
}

bool connected(int fd) {
    int error = 0;
    socklen_t size = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
}

std::vector<std::string> split_list(const std::string& text) {
    std::vector<std::string> parts;
    for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t end = std::min(text.find(',', begin), text.size());
        if (end > begin) parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

}  // namespace

LineSocket& LineSocket::operator=(LineSocket&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(in_, other.in_);
    std::swap(out_, other.out_);
    return *this;
}

void LineSocket::close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
    in_.clear();
    out_.clear();
}

bool LineSocket::send(const std::string& line) {
    if (fd_ < 0) return false;
    if (out_.size() + line.size() > kMostKept) return false;
    out_ += line;
    out_ += '\n';
    return flush();
}

bool LineSocket::flush() {
    while (fd_ >= 0 && !out_.empty()) {
        const ssize_t n = ::send(fd_, out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            out_.erase(0, static_cast<std::size_t>(n));
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return true;
        } else {
            close();
        }
    }
    return fd_ >= 0;
}

bool LineSocket::receive(std::vector<std::string>& lines) {
    char chunk[1 << 14];
    bool lost = fd_ < 0;
    while (!lost) {
        const ssize_t n = ::recv(fd_, chunk, sizeof chunk, MSG_DONTWAIT);
        if (n > 0) {
            in_.append(chunk, static_cast<std::size_t>(n));
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            break;
        } else {
            lost = true;
        }
        if (in_.size() > kMostKept) lost = true;  // no peer of ours
    }
    std::size_t begin = 0;
    for (std::size_t end = in_.find('\n'); end != std::string::npos; end = in_.find('\n', begin)) {
        lines.push_back(in_.substr(begin, end - begin));
        begin = end + 1;
    }
    in_.erase(0, begin);
    if (lost) close();
    return !lost;
}

LineSocket connect_to_first(const std::string& addresses, double seconds) {
    std::vector<pollfd> waiting;
    for (const std::string& address : split_list(addresses))
        if (const int fd = begin_connect(address); fd >= 0)
            waiting.push_back({.fd = fd, .events = POLLOUT, .revents = 0});
    int first = -1;
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    while (first < 0 && !waiting.empty() && Clock::now() < end) {
        const auto left =
            std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
        if (::poll(waiting.data(), waiting.size(), static_cast<int>(std::max<long>(1, left))) < 0 &&
            errno != EINTR)
            break;
        for (pollfd& p : waiting) {  // in the order of the list
            if (p.revents == 0 || first >= 0) continue;
            if (connected(p.fd) && (p.revents & POLLOUT) != 0)
                first = p.fd;
            else
                ::close(std::exchange(p.fd, -1));
        }
        std::erase_if(waiting, [](const pollfd& p) { return p.fd < 0; });
    }
    for (const pollfd& p : waiting)
        if (p.fd != first) ::close(p.fd);
    if (first >= 0) {
        const int on = 1;
        setsockopt(first, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    return LineSocket(first);
}

int listen_on_any_port(int* port) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_ANY);
    socklen_t size = sizeof address;
    if (bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(fd, SOMAXCONN) != 0 ||
        getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
        ::close(fd);
        return -1;
    }
    *port = ntohs(address.sin_port);
    return fd;
}

std::vector<std::string> own_addresses() {
    std::vector<std::string> found, loopback;
    ifaddrs* all = nullptr;
    if (getifaddrs(&all) == 0) {
        for (const ifaddrs* i = all; i != nullptr; i = i->ifa_next) {
            if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET ||
                (i->ifa_flags & IFF_UP) == 0)
                continue;
            char text[INET_ADDRSTRLEN] = "";
            inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(i->ifa_addr)->sin_addr, text,
                      sizeof text);
            ((i->ifa_flags & IFF_LOOPBACK) != 0 ? loopback : found).emplace_back(text);
        }
        freeifaddrs(all);
    }
    if (loopback.empty()) loopback.emplace_back("127.0.0.1");
    found.insert(found.end(), loopback.begin(), loopback.end());
    return found;
}

}  // namespace stoa
