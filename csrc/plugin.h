// How a device's plug-in library and the core meet: one exported function that gives a table of operations. Both sides are
// built from one source tree; the version says whether they are.
#pragma once

#include "localdiff.h"
#include "ops.h"

namespace ld {

struct Plugin {
  const char* version;  // ld_version() of the core it belongs to
  size_t table;         // sizeof(Ops) as it was built, which tells apart states of the source between versions
  const Ops* ops;       // null where the device cannot be used
  const char* reason;   // then why, as a sentence
  // No exception crosses from one library to another, each of which may have its own C++ run-time. What failed in the
  // calling thread's last operation, LD_OK where nothing did; asking forgets it.
  ld_status (*take_failure)(const char** message);
};

constexpr const char* kPluginFunction = "localdiff_plugin";
using PluginFunction = const Plugin* (*)();

// The operations of a device: "cpu" or null, else the path of a plug-in library. Throws Error(LD_INVALID).
const Ops& ops_of(const char* device);

}  // namespace ld
