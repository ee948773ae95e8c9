#include "plugin.h"

#include <dlfcn.h>

#include <cstring>
#include <mutex>
#include <string>
#include <type_traits>

#include "error.h"

namespace ld {
namespace {

const Plugin* plugin;  // the one that is loaded

// An operation of the plug-in, whose failure becomes an Error.
template <auto member>
struct Checked;
template <class Result, class... Arguments, Result (*Ops::*member)(Arguments...)>
struct Checked<member> {
  static Result call(Arguments... arguments) {
    const auto run = [&] { return (plugin->ops->*member)(static_cast<Arguments>(arguments)...); };
    if constexpr (std::is_void_v<Result>) {
      run();
      check();
    } else {
      const Result result = run();
      check();
      return result;
    }
  }
  static void check() {
    const char* message;
    const ld_status status = plugin->take_failure(&message);
    if (status != LD_OK) throw Error(status, message);
  }
};

const Ops& checked_ops() {
  static const Ops ops = {plugin->ops->name,
                          Checked<&Ops::open>::call,
                          Checked<&Ops::close>::call,
                          Checked<&Ops::isa>::call,
                          Checked<&Ops::measure_peak>::call,
                          Checked<&Ops::memory>::call,
                          Checked<&Ops::pack>::call,
                          Checked<&Ops::release>::call,
                          Checked<&Ops::weight_bytes>::call,
                          Checked<&Ops::footprint>::call,
                          Checked<&Ops::upload>::call,
                          Checked<&Ops::release_vector>::call,
                          Checked<&Ops::plan>::call,
                          Checked<&Ops::create>::call,
                          Checked<&Ops::destroy>::call,
                          Checked<&Ops::buffer>::call,
                          Checked<&Ops::receive>::call,
                          Checked<&Ops::threads>::call,
                          Checked<&Ops::observe>::call,
                          Checked<&Ops::begin_step>::call,
                          Checked<&Ops::end_step>::call,
                          Checked<&Ops::embed>::call,
                          Checked<&Ops::linear>::call,
                          Checked<&Ops::apply>::call,
                          Checked<&Ops::mean>::call,
                          Checked<&Ops::scale>::call,
                          Checked<&Ops::experts>::call,
                          Checked<&Ops::store_kv>::call,
                          Checked<&Ops::read_kv>::call,
                          Checked<&Ops::write_kv>::call,
                          Checked<&Ops::attention>::call,
                          Checked<&Ops::propose>::call,
                          Checked<&Ops::logits>::call};
  return ops;
}

// Opened once and kept: its code runs until the process ends.
const Ops& load(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw Error(LD_INVALID, text("the device plug-in cannot be opened: %s", dlerror()));
  const auto function = reinterpret_cast<PluginFunction>(dlsym(library, kPluginFunction));
  if (function == nullptr) throw Error(LD_INVALID, text("%s is no device plug-in of localdiff", path));
  plugin = function();
  if (strcmp(plugin->version, ld_version()) != 0)
    throw Error(LD_INVALID, text("the device plug-in %s belongs to localdiff %s, this is %s; install the two together",
                                 path, plugin->version, ld_version()));
  if (plugin->table != sizeof(Ops))
    throw Error(LD_INVALID,
                text("the device plug-in %s was built from another state of the source; build both again", path));
  if (plugin->ops == nullptr) throw Error(LD_INVALID, plugin->reason);
  return checked_ops();
}

}  // namespace

const Ops& ops_of(const char* device) {
  if (device == nullptr || strcmp(device, "cpu") == 0) return cpu_ops();
  static std::mutex mutex;
  static std::string loaded;
  static const Ops* ops = nullptr;
  const std::lock_guard lock(mutex);
  if (ops != nullptr && loaded != device)
    throw Error(LD_INVALID, text("the device plug-in %s is in use; a process takes one", loaded.c_str()));
  if (ops == nullptr) ops = &load(device);
  loaded = device;
  return *ops;
}

}  // namespace ld
