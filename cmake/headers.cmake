# Every public header compiles alone, with nothing but include/ and the standard library in sight:
# one source per header that includes it and nothing else. Built with the tests.
if(UF_TESTS)
  file(GLOB UF_PUBLIC_HEADERS CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/include
       ${PROJECT_SOURCE_DIR}/include/ultraflash/*.h)
  set(UF_HEADER_SOURCES)
  foreach(header IN LISTS UF_PUBLIC_HEADERS)
    string(MAKE_C_IDENTIFIER ${header} name)
    set(source ${PROJECT_BINARY_DIR}/generated/headers/${name}.cc)
    file(CONFIGURE OUTPUT ${source} CONTENT "#include \"${header}\"\n")
    list(APPEND UF_HEADER_SOURCES ${source})
  endforeach()
  add_library(uf_headers_alone OBJECT ${UF_HEADER_SOURCES})
  target_include_directories(uf_headers_alone PRIVATE ${PROJECT_SOURCE_DIR}/include)
  target_link_libraries(uf_headers_alone PRIVATE uf_warnings)
endif()
