#include <fmt/format.h>

#include "launcher/bundle/bundle.h"

namespace stoa {

std::string start_script(const std::string& program, const std::string& up,
                         const std::string& arguments) {
    return fmt::format(
        "#!/bin/sh\n"
        "# Starts {0} of this bundle, wherever the folder is now.\n"
        "STOA_BUNDLE=$(dirname -- \"$(readlink -f -- \"$0\")\"){1}\n"
        "STOA_BUNDLE=$(cd -P -- \"$STOA_BUNDLE\" && pwd) || exit 1\n"
        ". \"$STOA_BUNDLE/libexec/environment\"\n"
        "exec \"$STOA_BUNDLE/libexec/{0}\"{2} \"$@\"\n",
        program, up, arguments);
}

std::string environment_script() {
    return "# Set by each start script, on every host, from where the folder lies.\n"
           "export STOA_BUNDLE\n"
           "case \":$LD_LIBRARY_PATH:\" in\n"
           // mpirun has set it on another host; there was nothing before.
           "*\":$STOA_BUNDLE/lib:\"*) export STOA_HOST_LIBRARY_PATH=\"$STOA_HOST_LIBRARY_PATH\" ;;\n"
           // What the system's own programs are started with (ssh, sbatch): not with our libraries.
           "*) export STOA_HOST_LIBRARY_PATH=\"$LD_LIBRARY_PATH\"\n"
           "   LD_LIBRARY_PATH=\"$STOA_BUNDLE/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\" ;;\n"
           "esac\n"
           "case \":$PATH:\" in\n"
           "*\":$STOA_BUNDLE/bin:\"*) ;;\n"
           "*) PATH=\"$STOA_BUNDLE/bin:$PATH\" ;;\n"
           "esac\n"
           "export LD_LIBRARY_PATH PATH\n"
           "export OPAL_PREFIX=\"$STOA_BUNDLE\" OPAL_EXEC_PREFIX=\"$STOA_BUNDLE\"\n"
           "export OPAL_BINDIR=\"$STOA_BUNDLE/bin\" OPAL_LIBDIR=\"$STOA_BUNDLE/lib\"\n"
           "export OPAL_PKGLIBDIR=\"$STOA_BUNDLE/lib/openmpi\"\n"
           "export OPAL_DATADIR=\"$STOA_BUNDLE/share\" OPAL_DATAROOTDIR=\"$STOA_BUNDLE/share\"\n"
           "export OPAL_PKGDATADIR=\"$STOA_BUNDLE/share/openmpi\"\n"
           "export OPAL_SYSCONFDIR=\"$STOA_BUNDLE/etc/openmpi\"\n"
           "export PMIX_PREFIX=\"$STOA_BUNDLE\" PMIX_EXEC_PREFIX=\"$STOA_BUNDLE\"\n"
           "export PMIX_LIBDIR=\"$STOA_BUNDLE/lib\" PMIX_DATADIR=\"$STOA_BUNDLE/share\"\n"
           "export PMIX_PKGDATADIR=\"$STOA_BUNDLE/share/pmix\"\n"
           "export PMIX_PKGLIBDIR=\"$STOA_BUNDLE/lib/pmix\"\n"
           "export PMIX_MCA_mca_base_component_path=\"$STOA_BUNDLE/lib/pmix\"\n"
           "export PMIX_SYSCONFDIR=\"$STOA_BUNDLE/etc/pmix\"\n"
           // There are none: hwloc's and UCX's of the node are of other versions.
           "export HWLOC_PLUGINS_PATH=\"$STOA_BUNDLE/lib/hwloc\"\n"
           "export UCX_MODULE_DIR=\"$STOA_BUNDLE/lib/ucx\"\n"
           // A plug-in for hardware that this node lacks is not worth a line per rank.
           "export OMPI_MCA_mca_base_component_show_load_errors=0\n"
           // By its name: Open MPI cuts a path at spaces.
           "export OMPI_MCA_plm_rsh_agent=\"${OMPI_MCA_plm_rsh_agent:-stoa-ssh}\"\n";
}

std::string remote_shell_script() {
    return "#!/bin/sh\n"
           "LD_LIBRARY_PATH=$STOA_HOST_LIBRARY_PATH\n"
           "export LD_LIBRARY_PATH\n"
           "exec ssh \"$@\"\n";
}

}  // namespace stoa
