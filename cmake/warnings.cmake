add_library(uf_warnings INTERFACE)
target_compile_options(uf_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wold-style-cast
  -Wnon-virtual-dtor -Woverloaded-virtual -Wcast-align -Wunused -Wdouble-promotion -Wformat=2
  -Wundef $<$<BOOL:${UF_WERROR}>:-Werror>)
# GNU vector types and statement macros are used on purpose.
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(uf_warnings INTERFACE -Wno-gnu-zero-variadic-macro-arguments
                         -Wno-psabi)
else()
  target_compile_options(uf_warnings INTERFACE -Wno-psabi -Wduplicated-cond -Wlogical-op
                         -Wduplicated-branches)
  if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # At -O3 GCC 12 sees overlapping copies in `"literal" + std::string`, and a few other string
    # operations, where there are none (its bug 105651, mended in GCC 13).
    target_compile_options(uf_warnings INTERFACE -Wno-restrict)
  endif()
endif()
