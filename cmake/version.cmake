# The version string that programs print and video files carry: version, and the commit if known.
set(UF_COMMIT "unknown")
find_package(Git QUIET)
if(GIT_FOUND AND EXISTS ${PROJECT_SOURCE_DIR}/.git)
  execute_process(COMMAND ${GIT_EXECUTABLE} -C ${PROJECT_SOURCE_DIR} rev-parse --short=12 HEAD
                  OUTPUT_VARIABLE UF_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
                  RESULT_VARIABLE UF_GIT_RESULT)
  if(NOT UF_GIT_RESULT EQUAL 0)
    set(UF_COMMIT "unknown")
  endif()
endif()
