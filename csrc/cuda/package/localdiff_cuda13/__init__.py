"""The GPU plug-in of localdiff: liblocaldiff_cuda.so beside this file, which localdiff looks for. Nothing to import."""
