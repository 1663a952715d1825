add_library(uf_warnings INTERFACE)
target_compile_options(uf_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wold-style-cast
  -Wnon-virtual-dtor -Woverloaded-virtual -Wcast-align -Wunused -Wdouble-promotion -Wformat=2
  -Wundef $<$<BOOL:${UF_WERROR}>:-Werror>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  # GNU vector types and statement macros are used on purpose.
  target_compile_options(uf_warnings INTERFACE -Wno-gnu-zero-variadic-macro-arguments
                         -Wno-psabi)
else()
  target_compile_options(uf_warnings INTERFACE -Wno-psabi -Wduplicated-cond -Wlogical-op
                         -Wduplicated-branches)
endif()
