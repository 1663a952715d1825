add_library(uf_warnings INTERFACE)
# Not for CUDA files: nvcc takes other flags (cmake/cuda.cmake).
set(UF_WARNINGS
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wold-style-cast
  -Wnon-virtual-dtor -Woverloaded-virtual -Wcast-align -Wunused -Wdouble-promotion -Wformat=2
  -Wundef)
if(UF_WERROR)
  list(APPEND UF_WARNINGS -Werror)
endif()
# GNU vector types and statement macros are used on purpose.
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  list(APPEND UF_WARNINGS -Wno-gnu-zero-variadic-macro-arguments -Wno-psabi)
else()
  list(APPEND UF_WARNINGS -Wno-psabi -Wduplicated-cond -Wlogical-op -Wduplicated-branches)
  if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # At -O3 GCC 12 sees overlapping copies in `"literal" + std::string`, and a few other string
    # operations, where there are none (its bug 105651, mended in GCC 13).
    list(APPEND UF_WARNINGS -Wno-restrict)
  endif()
endif()
target_compile_options(uf_warnings INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${UF_WARNINGS}>")
