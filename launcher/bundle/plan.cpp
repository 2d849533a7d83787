#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>

#include "kernels/core/error.h"
#include "launcher/bundle/bundle.h"
#include "launcher/tool.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;

// Libraries that open others by name at run time: ldd does not see those.
struct Opens {
    const char* library;  // begin of its name
    const char* prefix;   // of the files beside it, ".so" somewhere behind
    const char* folder;   // of them, from its own; they keep it in the bundle
};
constexpr Opens kOpens[] = {
    {"libcudnn.so", "libcudnn_", ""},
    {"libcudnn.so", "libnvrtc", ""},
    {"libnvrtc.so", "libnvrtc-builtins", ""},
    {"libucs.so", "libuc", "ucx"},
};

std::string found_on_path(const std::string& name) {
    const char* path = std::getenv("PATH");
    const std::string all = path == nullptr ? "" : path;
    for (std::size_t begin = 0; begin <= all.size();) {
        const std::size_t end = std::min(all.find(':', begin), all.size());
        const fs::path candidate = fs::path(all.substr(begin, end - begin)) / name;
        std::error_code error;
        if (fs::is_regular_file(candidate, error)) return fs::canonical(candidate).string();
        begin = end + 1;
    }
    return "";
}

bool has_plugins(const fs::path& dir) {
    std::error_code error;
    for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error))
        if (it->path().filename().string().starts_with("mca_")) return true;
    return false;
}

// "path:pkglibdir:/usr/lib/openmpi" -> the path; "" without ompi_info.
std::string ompi_path(const std::string& what) {
    const ToolOutput o = run_tool({"ompi_info", "--parsable", "--path", what}, 20.0);
    const std::string mark = "path:" + what + ":";
    const std::size_t at = o.out.find(mark);
    if (o.code != 0 || at == std::string::npos) return "";
    const std::size_t begin = at + mark.size();
    return o.out.substr(begin, o.out.find('\n', begin) - begin);
}

std::string path_of(const Needs& needs, const std::string& begin_of_name) {
    for (const Library& l : needs.libraries)
        if (l.name.starts_with(begin_of_name)) return l.path;
    return "";
}

void require_found(const Needs& needs) {
    const std::string missing = needs.first_missing();
    if (!missing.empty())
        throw DataError({.what = "a shared library is missing",
                         .where = needs.file,
                         .expected = missing + " where this machine's loader looks",
                         .actual = "not found",
                         .hint = "install it, or add its folder to LD_LIBRARY_PATH"});
}

class Planner {
public:
    explicit Planner(BundlePlan& plan) : plan_(plan) {}

    void add(const std::string& to, const std::string& from, bool executable = false) {
        if (!taken_.insert(to).second) return;
        plan_.files.push_back({.to = to, .from = from, .executable = executable});
        plan_.bytes += static_cast<std::int64_t>(fs::file_size(from));
    }
    void add_text(const std::string& to, const std::string& text, bool executable) {
        plan_.files.push_back({.to = to, .text = text, .executable = executable});
    }
    void add_folder(const std::string& to, const std::string& from) {
        std::error_code error;
        if (from.empty()) return;
        for (fs::recursive_directory_iterator it(from, error), end; !error && it != end;
             it.increment(error))
            if (it->is_regular_file(error))
                add(to + "/" + fs::relative(it->path(), from).string(),
                    fs::canonical(it->path()).string());
    }
    void add_libraries(const Needs& needs) {
        for (const Library& l : needs.libraries) {
            if (is_of_the_node(l.name)) {
                node_.insert(l.name);
                continue;
            }
            const bool is_new = !taken_.contains("lib/" + l.name);
            add("lib/" + l.name, fs::canonical(l.path).string());
            if (is_new) add_opened(l);
        }
    }
    // Left out where it lacks a library here, and where it is of OpenSHMEM, not of MPI.
    void add_plugin(const std::string& folder, const Needs& needs) {
        const std::string name = fs::path(needs.file).filename().string();
        if (!path_of(needs, "liboshmem").empty()) return;
        if (const std::string missing = needs.first_missing(); !missing.empty()) {
            plan_.left_out.push_back(fmt::format("{} (needs {})", name, missing));
            return;
        }
        add(folder + name, fs::canonical(needs.file).string());
        add_libraries(needs);
    }
    void finish() { plan_.of_the_node.assign(node_.begin(), node_.end()); }

private:
    void add_opened(const Library& library) {
        std::vector<std::string> found;
        for (const Opens& o : kOpens) {
            if (!library.name.starts_with(o.library)) continue;
            // Beside the name that the loader found, and beside the file itself.
            for (const fs::path& beside : {fs::path(library.path), fs::canonical(library.path)}) {
                std::error_code error;
                fs::directory_iterator it(beside.parent_path() / o.folder, error), end;
                for (; !error && it != end; it.increment(error)) {
                    const std::string name = it->path().filename().string();
                    const std::string to = (fs::path("lib") / o.folder / name).string();
                    if (!name.starts_with(o.prefix) || name.find(".so") == std::string::npos ||
                        taken_.contains(to))
                        continue;
                    add(to, fs::canonical(it->path()).string());
                    found.push_back(fs::canonical(it->path()).string());
                }
            }
        }
        for (const Needs& needs : needs_of(found))
            if (needs.first_missing().empty()) add_libraries(needs);
    }

    BundlePlan& plan_;
    std::set<std::string> taken_, node_;
};

std::vector<std::string> plugins_in(const std::string& dir) {
    std::vector<std::string> files;
    for (const auto& entry : fs::directory_iterator(dir))
        if (entry.path().extension() == ".so") files.push_back(entry.path().string());
    std::ranges::sort(files);
    return files;
}

}  // namespace

MpiPlaces find_open_mpi(const Needs& program) {
    MpiPlaces places;
    const std::string pal = path_of(program, "libopen-pal.so");
    if (pal.empty())
        throw DataError({.what = "the MPI library is not Open MPI",
                         .where = path_of(program, "libmpi"),
                         .expected = "Open MPI 4 (libopen-pal)",
                         .hint = "build stoa with Open MPI, or install it on the nodes"});
    const fs::path lib = fs::canonical(pal).parent_path();
    for (const fs::path& dir : {fs::path(ompi_path("pkglibdir")), lib / "openmpi/lib/openmpi3",
                                lib / "openmpi/lib/openmpi", lib / "openmpi"})
        if (places.plugins.empty() && has_plugins(dir)) places.plugins = dir.string();
    if (places.plugins.empty())
        throw DataError({.what = "cannot find Open MPI's plug-ins",
                         .where = pal,
                         .expected = "a folder with mca_*.so, as `ompi_info --path pkglibdir` says",
                         .hint = "install Open MPI's binaries (openmpi-bin, libopenmpi3)"});
    for (const char* name : {"mpirun", "orted"}) {
        const std::string path = found_on_path(name);
        if (path.empty())
            throw DataError({.what = fmt::format("cannot find {}", name),
                             .where = "PATH",
                             .expected = "Open MPI's own, of the version that stoa is linked with",
                             .hint = "install openmpi-bin, or add Open MPI's bin to the PATH"});
        places.programs.push_back(path);
    }
    const auto first_of = [](const std::vector<fs::path>& dirs) {
        std::error_code error;
        for (const fs::path& d : dirs)
            if (!d.empty() && fs::is_directory(d, error)) return d.string();
        return std::string();
    };
    const fs::path bin = fs::path(places.programs[0]).parent_path();
    places.share = first_of({ompi_path("pkgdatadir"), bin / "../share/openmpi"});
    places.etc = first_of({ompi_path("sysconfdir"), bin / "../etc/openmpi"});
    return places;
}

BundlePlan plan_bundle(const std::string& program) {
    BundlePlan plan;
    Planner planner(plan);
    const Needs own = needs_of({program})[0];
    require_found(own);
    const MpiPlaces mpi = find_open_mpi(own);
    planner.add("libexec/stoa", program, true);
    planner.add_libraries(own);
    for (const Needs& needs : needs_of(mpi.programs)) {
        require_found(needs);
        planner.add_libraries(needs);
    }
    planner.add("libexec/mpirun", mpi.programs[0], true);
    planner.add("libexec/orted", mpi.programs[1], true);
    std::string pmix;  // Open MPI's is a plug-in that opens a library with plug-ins
    for (const Needs& needs : needs_of(plugins_in(mpi.plugins))) {
        planner.add_plugin("lib/openmpi/", needs);
        if (pmix.empty()) pmix = path_of(needs, "libpmix.so");
    }
    if (!pmix.empty()) {
        const fs::path lib = fs::canonical(pmix).parent_path();
        if (fs::is_directory(lib / "pmix"))
            for (const Needs& needs : needs_of(plugins_in((lib / "pmix").string())))
                planner.add_plugin("lib/pmix/", needs);
        if (fs::is_directory(lib / "../share/pmix"))
            planner.add_folder("share/pmix", fs::canonical(lib / "../share/pmix").string());
    }
    planner.add_folder("share/openmpi", mpi.share);
    planner.add_folder("etc/openmpi", mpi.etc);
    planner.add_text("libexec/environment", environment_script(), false);
    planner.add_text("bin/stoa-ssh", remote_shell_script(), true);
    planner.add_text("stoa", start_script("stoa", "", ""), true);
    planner.add_text("bin/mpirun", start_script("mpirun", "/..", " --prefix \"$STOA_BUNDLE\""),
                     true);
    planner.add_text("bin/orted", start_script("orted", "/..", ""), true);
    planner.finish();
    return plan;
}

}  // namespace stoa
