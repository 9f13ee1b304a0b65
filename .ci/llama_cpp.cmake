# Included by llama.cpp's project(): leaves out what its own tools share, a third of the compiling.
# llama-cpp-python sets the option to ON in the cache, which a plain variable of this scope hides.
set(LLAMA_BUILD_COMMON OFF)
