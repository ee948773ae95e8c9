// The shared library consists of the static core alone; CMake wants it to have a source of its own.
